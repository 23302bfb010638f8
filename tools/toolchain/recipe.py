"""What is built, from what, and under which name it is cached. Nothing here acts.

Versions are the newest that the Go module proxy serves and that work together; the modules
behind them are pinned by `go.mod` and `go.sum` in the folder of each component.
"""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

MINIMUM = (3, 259, 0)
"""The oldest Pulumi that is used as it is: the first known to take an executable policy pack."""

ENGINE_VERSION = "v3.259.0"
PLUGIN_VERSION = "v10.2.0"

PROCEDURE = 2
"""Raised whenever build.py puts other files into a component's folder, or builds otherwise."""

PROVIDER_SOURCE = (
    "github.com/pulumi/terraform-provider-google-beta@v0.0.0-20220322115232-95a6e6e5087e"
)
PROVIDER_SUM = "h1:I8PChvJk1gf0lnqfu/ipjG1LQJrM4JOKzCYxCOO3QBs="
"""Checksum of that module, as `go.sum` would hold it (it is built from a patched copy)."""

PATCHED_FILE = "google-beta/resource_storage_bucket.go"
PATCHES = (
    ("int(condition.Age)", "int(*condition.Age)"),
    ("transformed.Age = int64(v.(int))", "age := int64(v.(int)); transformed.Age = &age"),
)
"""Two lines that no longer compile, because `condition.Age` became a pointer."""

PROVIDER_GO_MOD = "module github.com/hashicorp/terraform-provider-google-beta\n\ngo 1.17\n"
"""The copy's own `go.mod`. Without its old requirements Go need not read the manifests of
hundreds of modules that nothing is built from; ours names every one that is."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One thing that is built: its folder here, its package, and where the result goes."""

    name: str
    title: str
    package: str
    output: str
    """Path of the executable inside the component's folder in the cache."""
    ldflags: str
    seconds: float
    """Time from empty caches on two cores (measured: see `tools/toolchain/README.md`)."""
    megabytes: int
    """What the build leaves in Go's caches and in ours (measured likewise)."""
    extra: str = ""
    """What else decides about the result and is in none of the folder's files."""


ENGINE = Component(
    name="engine",
    title="the engine",
    package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
    output="bin/pulumi",
    ldflags=f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version={ENGINE_VERSION}",
    seconds=210.0,
    megabytes=3400,
)
HOST = Component(
    name="host",
    title="the Python language host",
    package="github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python",
    output="bin/pulumi-language-python",
    ldflags="-s -w",
    seconds=17.0,
    megabytes=200,
    extra=ENGINE_VERSION,
)
PROVIDER = Component(
    name="provider",
    title="the Google provider",
    package=".",
    output=f"home/plugins/resource-gcp-{PLUGIN_VERSION}/pulumi-resource-gcp",
    ldflags="-s -w",
    seconds=220.0,
    megabytes=2400,
    extra=repr((PROVIDER_SOURCE, PROVIDER_SUM, PATCHED_FILE, PATCHES, PROVIDER_GO_MOD)),
)
COMPONENTS = (ENGINE, HOST, PROVIDER)


def system() -> str:
    """This machine, as Go would name it closely enough to keep caches apart."""
    return f"{platform.system()}-{platform.machine()}".lower()


def key(component: Component, folder: Path, machine: str) -> str:
    """Twelve hex digits that change whenever anything does that the result depends on."""
    digest = hashlib.sha256()
    result = (component.package, component.output, component.ldflags, component.extra)
    for part in (repr(result), str(PROCEDURE), machine):
        digest.update(part.encode() + b"\0")
    for file in sorted(folder.iterdir()):
        if file.suffix in {".go", ".mod", ".sum"}:
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def patch(text: str) -> str:
    """The storage bucket resource with its two lines mended.

    Raises ValueError, naming the line, unless each stands there exactly once: anything else is
    another source than the one that was looked at.
    """
    for old, new in PATCHES:
        found = text.count(old)
        if found != 1:
            raise ValueError(
                f"{PATCHED_FILE} has {found} times `{old}` where the patch expects it once"
            )
        text = text.replace(old, new)
    return text


def version_of(text: str) -> tuple[int, int, int] | None:
    """The first version number in a text such as `v3.260.0-dev.1` or `go version go1.26.8`."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        return None
    return int(found[1]), int(found[2]), int(found[3] or 0)


def go_minimum(go_mods: list[str]) -> tuple[int, int, int]:
    """The Go that the given `go.mod` texts ask for: the newest of their `go` lines."""
    versions = [
        version
        for text in go_mods
        for line in re.findall(r"^go (\S+)$", text, re.MULTILINE)
        if (version := version_of(line))
    ]
    return max(versions)


def dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
