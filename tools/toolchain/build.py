"""Builds the components that the cache lacks, one at a time; each is moved in by one rename.

The cache is `${XDG_CACHE_HOME:-~/.cache}/pilot-fleet/toolchain/`. Each component has a folder
COMPONENT-KEY. The folder KEY links all their files together, because the engine accepts a language
host without a warning only from its own folder. A folder that exists is complete: an interrupted
build leaves a scratch folder, which the next build removes. Go keeps the packages that it has
compiled, so the next build continues from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.toolchain import versions
from tools.toolchain.failure import INSTALL_PULUMI, Failure, explain
from tools.toolchain.progress import Steps, about, say
from tools.toolchain.versions import COMPONENTS, ENGINE, HERE, HOST, PROVIDER, Component

Run = Callable[[Component, Sequence[str], Path], str]
"""Runs a command of a component's build in a folder; returns its output."""


END_SECONDS = 30.0
"""Time for an interrupted Go to end."""


def cache_root(environ: Mapping[str, str]) -> Path:
    """The folder of this user's built components."""
    cache = environ.get("XDG_CACHE_HOME") or ""
    base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return base / "pilot-fleet" / "toolchain"


@dataclass(frozen=True, kw_only=True)
class Built:
    """The toolchain's folders in the cache, which may not exist yet."""

    folder: Path
    parts: Mapping[str, Path]
    """Name of a component -> its folder."""

    def complete(self) -> bool:
        return self.folder.exists()

    def missing(self) -> list[Component]:
        return [c for c in COMPONENTS if not self.parts[c.name].exists()]

    def bin(self) -> Path:
        return self.folder / "bin"

    def home(self) -> Path:
        """PULUMI_HOME: has the plugin, and Pulumi keeps its workspaces there."""
        return self.folder / "home"


def locate(root: Path) -> Built:
    """The folders of all components, from a few small files; builds nothing."""
    machine = versions.system()
    keys = {c.name: versions.key(c, HERE / c.name, machine) for c in COMPONENTS}
    return Built(
        folder=root / hashlib.sha256(repr(keys).encode()).hexdigest()[:12],
        parts={name: root / f"{name}-{key}" for name, key in keys.items()},
    )


@contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on a file or folder; says so when it has to wait."""
    descriptor = os.open(lock, os.O_RDONLY | (0 if lock.is_dir() else os.O_CREAT), 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{what} is under way in another process: waiting for it to finish")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lacking_space(needs: Sequence[tuple[Path, int]]) -> str | None:
    """A sentence where a disk is too small, or None.

    `needs` are folders (which need not exist yet) and the megabytes that each will take. Folders on
    one file system share its space.
    """
    per_device: dict[int, tuple[Path, int, list[Path]]] = {}
    for folder, megabytes in needs:
        existing = folder
        while not existing.exists():
            existing = existing.parent
        device = existing.stat().st_dev
        _, so_far, folders = per_device.get(device, (existing, 0, []))
        per_device[device] = existing, so_far + megabytes, [*folders, folder]
    for existing, wanted, folders in per_device.values():
        free = shutil.disk_usage(existing).free // 1_000_000
        if free < wanted:
            where = ", ".join(dict.fromkeys(map(str, folders)))
            return (
                f"Building Pulumi takes about {wanted / 1000:.1f} GB of disk and {free / 1000:.1f} "
                f"GB are free under {where}: free some, point GOCACHE, GOMODCACHE and "
                f"XDG_CACHE_HOME at a disk with room, or {INSTALL_PULUMI}."
            )
    return None


def go_settings() -> dict[str, str]:
    """The settings of this machine's Go. Raises Failure when there is none, or it is too old."""
    wanted = versions.go_minimum([(HERE / c.name / "go.mod").read_text() for c in COMPONENTS])
    remedy = (
        f"install Go {versions.dotted(wanted)} or newer (https://go.dev/dl/), or {INSTALL_PULUMI}"
    )
    if not shutil.which("go"):
        raise Failure(
            f"Neither Pulumi nor Go is installed, so there is nothing to plan with: {remedy}."
        )
    names = ("GOVERSION", "GOTOOLCHAIN", "GOMODCACHE", "GOCACHE", "GOPROXY", "GOTMPDIR")
    try:
        # In the root folder, so that no parent folder's go.mod counts.
        answer = subprocess.run(
            ["go", "env", "-json", *names], capture_output=True, text=True, check=True, cwd="/"
        ).stdout
        settings: dict[str, str] = {name: json.loads(answer).get(name, "") for name in names}
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        last = detail.strip().splitlines()[-1] if detail.strip() else "no answer"
        raise Failure(f"`go env` failed ({last}): {remedy}.") from error
    if sentence := go_too_old(settings["GOVERSION"], settings["GOTOOLCHAIN"], wanted):
        raise Failure(f"{sentence}: {remedy}.")
    return settings


def go_too_old(version: str, toolchain: str, wanted: tuple[int, int, int]) -> str | None:
    """Why this Go cannot build the toolchain, or None.

    Go from 1.21 on fetches the Go that a go.mod asks for by itself, unless GOTOOLCHAIN forbids.
    """
    have = versions.version_of(version)
    if have is None or have >= wanted:
        return None
    if have >= (1, 21, 0) and (toolchain in {"", "auto"} or toolchain.endswith("+auto")):
        return None
    setting = (
        f" and GOTOOLCHAIN={toolchain} keeps it from fetching a newer one" if toolchain else ""
    )
    return f"Go {versions.dotted(have)} is too old{setting}"


def _end(process: subprocess.Popen[str]) -> None:
    """Terminate a process, kill it if it does not end, and reap it."""
    process.terminate()
    try:
        process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def go_runner(log: Path, proxy: str) -> Run:
    """A runner of pinned Go builds. Output goes to the log; a failure becomes a sentence."""
    environ = {
        **os.environ,
        # readonly: Go refuses a module that go.sum lacks, and asks no checksum database.
        "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -mod=readonly -buildvcs=false".strip(),
        "GOWORK": "off",
        "GO111MODULE": "on",
        # The one module without a go.sum: build_provider compares its checksum.
        "GONOSUMDB": ",".join(
            filter(None, [os.environ.get("GONOSUMDB"), versions.PROVIDER_SOURCE.split("@")[0]])
        ),
        "CGO_ENABLED": "0",
    }

    def run(component: Component, command: Sequence[str], folder: Path) -> str:
        with log.open("a+") as file:
            file.write(f"$ {' '.join(command)}\n")
            file.flush()
            start = file.tell()
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
            try:
                output, _ = process.communicate()
            except BaseException:
                _end(process)
                raise
            file.seek(start)
            errors = file.read()
        if process.returncode:
            # Some commands of Go report failures as JSON on standard output.
            raise Failure(
                explain(errors + output[-4000:], log=log, title=component.title, proxy=proxy)
            )
        return output

    return run


def go_build(component: Component, source: Path, scratch: Path, run: Run) -> None:
    target = scratch / component.output
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-trimpath", "-ldflags", component.ldflags, "-o", str(target)]
    run(component, ["go", "build", *flags, component.package], source)


def build_host(scratch: Path, run: Run) -> None:
    """Build the language host, and copy the script with which it starts a program.

    The script is the engine's: it belongs to the SDK that the program imports.
    """
    go_build(HOST, HERE / HOST.name, scratch, run)
    download = ["go", "mod", "download", "-json", "github.com/pulumi/pulumi/sdk/v3"]
    sdk = json.loads(run(HOST, download, HERE / ENGINE.name))["Dir"]
    script = scratch / "bin" / "pulumi-language-python-exec"
    shutil.copyfile(Path(sdk) / "python" / "cmd" / script.name, script)
    script.chmod(0o755)


def build_provider(scratch: Path, run: Run) -> None:
    """Build the provider from a patched copy of its module."""
    source = scratch / "source"
    source.mkdir()
    for name in ("go.mod", "go.sum", "main.go"):
        shutil.copyfile(HERE / PROVIDER.name / name, source / name)
    answer = json.loads(
        run(PROVIDER, ["go", "mod", "download", "-json", versions.PROVIDER_SOURCE], scratch)
    )
    if answer.get("Sum") != versions.PROVIDER_SUM:
        raise Failure(
            f"The module proxy served another {versions.PROVIDER_SOURCE} "
            f"({answer.get('Sum')}) than the one that tools/toolchain/versions.py pins: "
            "nothing was built from it."
        )
    copy_provider(Path(answer["Dir"]), source / "google")
    go_build(PROVIDER, source, scratch, run)
    remove(source)


def copy_provider(module: Path, target: Path) -> None:
    """Copy the compiled part of the provider's module, writable, and patch the copy."""
    skipped = shutil.ignore_patterns("*_test.go", "website", "scripts", "test-fixtures", ".*")
    shutil.copytree(module, target, copy_function=shutil.copyfile, ignore=skipped)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    patched = target / versions.PATCHED_FILE
    try:
        patched.write_text(versions.patch(patched.read_text()))
    except (OSError, ValueError) as error:
        raise Failure(
            f"The Google provider's source is not the one that tools/toolchain/versions.py patches "
            f"({error}): nothing was built from it."
        ) from error
    (target / "go.mod").write_text(versions.PROVIDER_GO_MOD)
    (target / "go.sum").unlink(missing_ok=True)


def build_one(component: Component, scratch: Path, run: Run) -> None:
    if component is HOST:
        build_host(scratch, run)
    elif component is PROVIDER:
        build_provider(scratch, run)
    else:
        go_build(component, HERE / component.name, scratch, run)


def assemble(built: Built, scratch: Path) -> None:
    """Link the files of all components into one folder, and move it in by one rename."""
    for part in built.parts.values():
        for file in part.rglob("*"):
            if file.is_file():
                target = scratch / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(file)
    scratch.rename(built.folder)


def ensure_built(root: Path, build: Callable[[Component, Path, Run], None] = build_one) -> Built:
    """The complete toolchain. Builds what is missing; costs nothing when nothing is.

    Raises Failure.
    """
    built = locate(root)
    if built.complete():
        return built
    root.mkdir(parents=True, exist_ok=True)
    with only_one(root / "lock", "A build of the toolchain"):
        if built.complete():
            return built
        for leftover in root.glob("scratch-*"):
            remove(leftover)
        if missing := built.missing():
            build_missing(root, built, missing, build)
        with scratch_folder(root, "all") as scratch:
            assemble(built, scratch)
    return built


def remove(folder: Path) -> None:
    """Remove a folder, also an unfinished copy of Go's module cache.

    Folders there are read-only, and so is a copy until it is finished: only root could remove it.
    """
    folder.chmod(0o700)
    for parent, names, _ in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)


@contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder beside the finished ones; removed at the end unless it was moved in."""
    scratch = root / f"scratch-{name}"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        if scratch.exists():
            remove(scratch)


def build_missing(
    root: Path,
    built: Built,
    missing: Sequence[Component],
    build: Callable[[Component, Path, Run], None],
) -> None:
    settings = go_settings()
    total = sum(c.megabytes for c in missing)
    needs = [
        # Measured shares after a build from empty caches.
        (root, total // 20),
        (Path(settings["GOMODCACHE"]), total * 9 // 20),
        (Path(settings["GOCACHE"]), total * 10 // 20),
    ]
    if sentence := lacking_space(needs):
        raise Failure(sentence)
    log = root / "build.log"
    log.unlink(missing_ok=True)
    run = go_runner(log, settings["GOPROXY"])
    steps = Steps([c.seconds for c in missing])
    say(
        f"Building Pulumi {versions.ENGINE_VERSION} from source, once: {about(steps.total())} on "
        "two cores if Go's caches are empty (an installed Pulumi 3.259 or newer skips this)"
    )
    for component in missing:
        title = f"building {component.title} ({COMPONENTS.index(component) + 1} of 3)"
        with scratch_folder(root, component.name) as scratch:
            with steps.step(title):
                build(component, scratch, run)
            scratch.rename(built.parts[component.name])


def main_guard(action: Callable[[], int]) -> int:
    """Run a command; turn a failure into one sentence and an exit status."""
    # SIGTERM interrupts like Ctrl-C, so that children are ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return action()
    except Failure as failure:
        say(str(failure))
        return failure.status
    except KeyboardInterrupt:
        say("Interrupted. Finished parts are kept: the same command continues from there.")
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        say(f"{error.strerror or error}{where}: fix it and run the same command again.")
        return 1
