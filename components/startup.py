"""The project's one startup script: rendered from startup/, owned as one metadata item.

Of the stack's configuration it has `basePort` alone, for the ports that the kernel must not hand
out. Other numbers, and differences between VMs, are in their `pilot-spec`.
"""

from __future__ import annotations

import base64
import bz2
import hashlib
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pulumi
import pulumi_gcp as gcp

# Compute Engine's limit of one metadata value, in bytes.
LIMIT_BYTES = 256 * 1024
KEY = "startup-script"
TEMPLATE = "startup.sh.j2"
STARTUP_DIR = Path(__file__).resolve().parent.parent / "startup"

_MODULES = "/usr/local/lib/pilot/node"
_UNITS = "/usr/local/lib/pilot/units"
_PROGRAM = "/usr/local/sbin/pilot-node"
# Ends the here-document with the files. Base64 has no underscore.
_END = "END_OF_FILES"
_LINE = 100

# Printed where the provider refuses to create the item because the project already has one
# ('key "startup-script" already present in metadata for project ...').
FOREIGN_SCRIPT = (
    "project {project} already has a startup-script in its metadata that this stack does not own. "
    "It was not touched.\n"
    "  look:   gcloud compute project-info describe --project {project} --format=json"
    " | jq -r '.commonInstanceMetadata.items[] | select(.key==\"startup-script\").value'\n"
    "  adopt:  pulumi import gcp:compute/projectMetadataItem:ProjectMetadataItem {name}"
    " startup-script --parent fleet={parent} --protect=false --generate-code=false\n"
    "          (the next `pulumi up` then replaces its text by ours)\n"
    "  remove: gcloud compute project-info remove-metadata --project {project}"
    " --keys=startup-script  (it runs on every VM of the project: ask whose it is)"
)


class RenderError(Exception):
    """startup/ makes no usable script. The text says why, and where."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """The text of the startup script, and the sha256 (hex) of its UTF-8 bytes."""

    text: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _File:
    """A file that the script carries: `path` and `mode` on a VM, `text` verbatim."""

    path: str
    mode: str
    text: str

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @property
    def delimiter(self) -> str:
        return _delimiter(self.path)


def render(base_port: int, startup_dir: Path | None = None) -> Script:
    """The startup script of a fleet from `startup_dir` (default: the repository's).

    The same files and `base_port` give the same bytes. Raises RenderError for a variable without a
    value, a file that cannot be embedded, and a script over Compute Engine's limit of 262,144
    bytes.
    """
    folder = startup_dir or STARTUP_DIR
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=False,
        # It makes a shell script: escaping for HTML would break it.
        autoescape=False,  # noqa: S701
    )
    try:
        text = environment.get_template(TEMPLATE).render(
            base_port=base_port,
            files=_packed(_files(folder)),
            unpack=_file("unpack.py", "", folder / "unpack.py"),
            delimiter=_END,
        )
    except jinja2.TemplateNotFound as error:
        raise RenderError(f"{folder}: there is no {error.message}") from error
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(f"{folder / TEMPLATE}:{error.lineno}: {error.message}") from error
    except jinja2.UndefinedError as error:
        raise RenderError(f"{folder / TEMPLATE}: {error.message}") from error
    # No white space at either end, so that trimming on the way to the VM does not change the hash
    # that its spec expects.
    text = text.strip()
    data = text.encode()
    if len(data) > LIMIT_BYTES:
        raise RenderError(
            f"the startup script has {len(data)} bytes, Compute Engine takes {LIMIT_BYTES} in a "
            f"metadata value: make {folder} smaller by {len(data) - LIMIT_BYTES} bytes"
        )
    return Script(text=text, sha256=hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, kw_only=True)
class ProjectStartupScriptArgs:
    """`project` is the Google Cloud project's id; `script` comes from `render`."""

    project: pulumi.Input[str]
    script: Script


class ProjectStartupScript(pulumi.ComponentResource):
    """The one `startup-script` of the project, and nothing else of its metadata.

    A ProjectMetadataItem, never a ProjectMetadata, which would wipe everyone else's keys. Where
    the project already has one that is not ours, the provider refuses to create it: see
    `FOREIGN_SCRIPT`.
    """

    key: pulumi.Output[str]
    sha256: pulumi.Output[str]

    def __init__(
        self,
        name: str,
        args: ProjectStartupScriptArgs,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("pilot:fleet:ProjectStartupScript", name, None, opts)
        item = gcp.compute.ProjectMetadataItem(
            f"{name}-item",
            key=KEY,
            project=args.project,
            value=args.script.text,
            opts=pulumi.ResourceOptions(
                parent=self,
                hooks=pulumi.ResourceHookBinding(
                    on_error=[pulumi.ErrorHook("foreign-startup-script", _explain)]
                ),
            ),
        )
        self.key = item.key
        # Computed from the item's value, not from the input.
        self.sha256 = item.value.apply(lambda text: hashlib.sha256(text.encode()).hexdigest())
        self.register_outputs({"key": self.key, "sha256": self.sha256})


def _explain(failure: pulumi.ErrorHookArgs) -> bool:
    """Explain what to do where the provider refused to create the item. Never asks for a retry."""
    if failure.failed_operation == "create" and any(
        "already present in metadata" in error for error in failure.errors
    ):
        parent = failure.urn.rsplit("$", 1)[0] + f"::{failure.name.removesuffix('-item')}"
        pulumi.log.error(
            FOREIGN_SCRIPT.format(
                project=(failure.new_inputs or {}).get("project", "PROJECT"),
                name=failure.name,
                parent=parent,
            )
        )
    return False


def _files(folder: Path) -> list[_File]:
    """All files that the script carries, in a fixed order."""
    modules = [
        (f"{_MODULES}/{p.relative_to(folder / 'node').as_posix()}", "0644", p)
        for p in _listed(folder / "node", "**/*.py")
    ]
    units = [(f"{_UNITS}/{p.name}", "0644", p) for p in _listed(folder / "units", "*")]
    program = [(_PROGRAM, "0755", folder / "pilot_node.py")]
    return [_file(*entry) for entry in (*modules, *units, *program)]


def _packed(files: list[_File]) -> str:
    """`files` as the script carries them: `FILE MODE LINES PATH` and the lines of each, compressed.

    Uncompressed they exceed the limit of a metadata value. bzip2, because its one implementation
    gives the same bytes everywhere, so that the script's hash does not depend on the machine that
    ran Pulumi. zlib and xz have several implementations.
    """
    plain = "".join(f"FILE {f.mode} {f.lines} {f.path}\n{f.text}" for f in files)
    text = base64.b64encode(bz2.compress(plain.encode(), 9)).decode()
    return "".join(f"{text[at : at + _LINE]}\n" for at in range(0, len(text), _LINE))


def _listed(folder: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise RenderError(f"{folder}: there is no {pattern} in it")
    return found


def _file(target: str, mode: str, path: Path) -> _File:
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise RenderError(f"{path}: is missing") from None
    except UnicodeDecodeError as error:
        raise RenderError(f"{path}: is not UTF-8: {error.reason}") from error
    # In a quoted here-document only a line that is the delimiter is special. The shell would drop a
    # NUL, and a last line without a newline would swallow the next line.
    for problem, found in (
        (f"has a line {_delimiter(target)}", _delimiter(target) in text.split("\n")),
        ("holds a NUL or a carriage return", "\0" in text or "\r" in text),
        ("does not end with a newline", bool(text) and not text.endswith("\n")),
        ("has a name with white space", len(target.split()) != 1),
    ):
        if found:
            raise RenderError(f"{path}: {problem}: it cannot be embedded in the startup script")
    return _File(path=target, mode=mode, text=text)


def _delimiter(target: str) -> str:
    return f"END_OF_{hashlib.sha256(target.encode()).hexdigest()[:12].upper()}"
