"""Builds what is missing from the cache, one component at a time, each moved in by one rename.

The cache is `${XDG_CACHE_HOME:-~/.cache}/pilot-fleet/toolchain/`: a folder COMPONENT-KEY for
every component, and KEY, in which their files are linked together, because the engine takes a
language host without a word only from its own folder. A folder that is there is complete; what
an interrupted build leaves is a scratch folder, which the next one removes. Go keeps every
package it has compiled, so such a build also goes on where it was.
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

from tools.toolchain import recipe
from tools.toolchain.failure import INSTALL_PULUMI, Failure, explain
from tools.toolchain.progress import Steps, about, say
from tools.toolchain.recipe import COMPONENTS, ENGINE, HERE, HOST, PROVIDER, Component

Run = Callable[[Component, Sequence[str], Path], str]
"""Runs a command of a component's build in a folder and returns what it printed."""


END_SECONDS = 30.0
"""What an interrupted Go gets to end in."""


def cache_root(environ: Mapping[str, str]) -> Path:
    """Where built components are kept for this user."""
    cache = environ.get("XDG_CACHE_HOME") or ""
    base = Path(cache) if cache.startswith("/") else Path.home() / ".cache"
    return base / "pilot-fleet" / "toolchain"


@dataclass(frozen=True, kw_only=True)
class Built:
    """The toolchain in the cache, complete or not yet there."""

    folder: Path
    parts: Mapping[str, Path]
    """Where each component is, by its name."""

    def complete(self) -> bool:
        return self.folder.exists()

    def missing(self) -> list[Component]:
        return [c for c in COMPONENTS if not self.parts[c.name].exists()]

    def bin(self) -> Path:
        return self.folder / "bin"

    def home(self) -> Path:
        """PULUMI_HOME: the plugin is found in it, and Pulumi keeps its workspaces there."""
        return self.folder / "home"


def locate(root: Path) -> Built:
    """Names every component's folder; reads a few small files and builds nothing."""
    machine = recipe.system()
    keys = {c.name: recipe.key(c, HERE / c.name, machine) for c in COMPONENTS}
    return Built(
        folder=root / hashlib.sha256(repr(keys).encode()).hexdigest()[:12],
        parts={name: root / f"{name}-{key}" for name, key in keys.items()},
    )


@contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Holds an exclusive lock on a file or folder; says so when it has to wait for it."""
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
    """The sentence for a disk that is too small, or None.

    `needs` are folders (which need not exist yet) with the megabytes each will take; folders on
    one file system share its room.
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
    """What this machine's Go says of itself. Raises Failure when there is none, or too old."""
    wanted = recipe.go_minimum([(HERE / c.name / "go.mod").read_text() for c in COMPONENTS])
    remedy = (
        f"install Go {recipe.dotted(wanted)} or newer (https://go.dev/dl/), or {INSTALL_PULUMI}"
    )
    if not shutil.which("go"):
        raise Failure(
            f"Neither Pulumi nor Go is installed, so there is nothing to plan with: {remedy}."
        )
    names = ("GOVERSION", "GOTOOLCHAIN", "GOMODCACHE", "GOCACHE", "GOPROXY", "GOTMPDIR")
    try:
        # In the root folder, so that no go.mod of a parent folder has a say.
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
    have = recipe.version_of(version)
    if have is None or have >= wanted:
        return None
    if have >= (1, 21, 0) and (toolchain in {"", "auto"} or toolchain.endswith("+auto")):
        return None
    setting = (
        f" and GOTOOLCHAIN={toolchain} keeps it from fetching a newer one" if toolchain else ""
    )
    return f"Go {recipe.dotted(have)} is too old{setting}"


def _end(process: subprocess.Popen[str]) -> None:
    """Asks a process to end, kills it where it does not, and reaps it."""
    process.terminate()
    try:
        process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def go_runner(log: Path, proxy: str) -> Run:
    """Runs Go with everything pinned; its output goes to the log, a failure to a sentence."""
    environ = {
        **os.environ,
        # readonly: what go.sum does not hold is refused, so no checksum database is asked.
        "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -mod=readonly -buildvcs=false".strip(),
        "GOWORK": "off",
        "GO111MODULE": "on",
        # The one module without a go.sum is compared with its checksum here instead.
        "GONOSUMDB": ",".join(
            filter(None, [os.environ.get("GONOSUMDB"), recipe.PROVIDER_SOURCE.split("@")[0]])
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
            # Some of Go's commands report failures as JSON on their standard output.
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
    """The language host, and beside it the script with which it starts a program.

    The script is the engine's: it goes with the SDK that the program imports.
    """
    go_build(HOST, HERE / HOST.name, scratch, run)
    download = ["go", "mod", "download", "-json", "github.com/pulumi/pulumi/sdk/v3"]
    sdk = json.loads(run(HOST, download, HERE / ENGINE.name))["Dir"]
    script = scratch / "bin" / "pulumi-language-python-exec"
    shutil.copyfile(Path(sdk) / "python" / "cmd" / script.name, script)
    script.chmod(0o755)


def build_provider(scratch: Path, run: Run) -> None:
    """The provider, from a copy of its module with two lines mended."""
    source = scratch / "source"
    source.mkdir()
    for name in ("go.mod", "go.sum", "main.go"):
        shutil.copyfile(HERE / PROVIDER.name / name, source / name)
    answer = json.loads(
        run(PROVIDER, ["go", "mod", "download", "-json", recipe.PROVIDER_SOURCE], scratch)
    )
    if answer.get("Sum") != recipe.PROVIDER_SUM:
        raise Failure(
            f"The module proxy served another {recipe.PROVIDER_SOURCE} ({answer.get('Sum')}) than "
            f"the one that tools/toolchain/recipe.py pins: nothing was built from it."
        )
    copy_provider(Path(answer["Dir"]), source / "google")
    go_build(PROVIDER, source, scratch, run)
    remove(source)


def copy_provider(module: Path, target: Path) -> None:
    """Copies what is compiled of the provider's module, writable, and patches the copy."""
    skipped = shutil.ignore_patterns("*_test.go", "website", "scripts", "test-fixtures", ".*")
    shutil.copytree(module, target, copy_function=shutil.copyfile, ignore=skipped)
    for folder in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        folder.chmod(0o755)
    patched = target / recipe.PATCHED_FILE
    try:
        patched.write_text(recipe.patch(patched.read_text()))
    except (OSError, ValueError) as error:
        raise Failure(
            f"The Google provider's source is not the one that tools/toolchain/recipe.py patches "
            f"({error}): nothing was built from it."
        ) from error
    (target / "go.mod").write_text(recipe.PROVIDER_GO_MOD)
    (target / "go.sum").unlink(missing_ok=True)


def build_one(component: Component, scratch: Path, run: Run) -> None:
    if component is HOST:
        build_host(scratch, run)
    elif component is PROVIDER:
        build_provider(scratch, run)
    else:
        go_build(component, HERE / component.name, scratch, run)


def assemble(built: Built, scratch: Path) -> None:
    """Links the files of all components together, and moves that in by one rename."""
    for part in built.parts.values():
        for file in part.rglob("*"):
            if file.is_file():
                target = scratch / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(file)
    scratch.rename(built.folder)


def ensure_built(root: Path, build: Callable[[Component, Path, Run], None] = build_one) -> Built:
    """The toolchain, complete. Builds what is missing; costs nothing when nothing is.

    Raises Failure with a sentence.
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
    """Removes a folder, also one that was being copied out of Go's module cache.

    What stands there is read-only, folders too, and copies are until they are finished: nobody
    but root could take anything out of them.
    """
    folder.chmod(0o700)
    for parent, names, _ in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)


@contextmanager
def scratch_folder(root: Path, name: str) -> Iterator[Path]:
    """A folder beside the finished ones that is gone afterwards, unless it was moved in."""
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
        # Measured shares of what a build from empty caches leaves.
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
        f"Building Pulumi {recipe.ENGINE_VERSION} from source, once: {about(steps.total())} on "
        "two cores if Go's caches are empty (an installed Pulumi 3.259 or newer skips this)"
    )
    for component in missing:
        title = f"building {component.title} ({COMPONENTS.index(component) + 1} of 3)"
        with scratch_folder(root, component.name) as scratch:
            with steps.step(title):
                build(component, scratch, run)
            scratch.rename(built.parts[component.name])


def main_guard(action: Callable[[], int]) -> int:
    """Runs a command and turns what stops it into one sentence and an exit status."""
    # Being ended and being interrupted are one thing: what runs below is ended too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return action()
    except Failure as failure:
        say(str(failure))
        return failure.status
    except KeyboardInterrupt:
        say("Interrupted. What is finished is kept: the same command goes on from there.")
        return 130
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        say(f"{error.strerror or error}{where}: see to it and run the same command again.")
        return 1
