"""Building into the cache: whole or not at all, once, by one process; and its failures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.machines.processes import ending
from tests.tools.toolchain import fakes
from tests.tools.toolchain.fakes import ROOT, Machine
from tools.toolchain import build, versions
from tools.toolchain.failure import Failure
from tools.toolchain.versions import COMPONENTS, Component

Build = Callable[[Component, Path, build.Run], None]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "machine")
    fakes.modules_for(made)
    return made


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Go is asked; there is room."""
    settings = {"GOMODCACHE": str(tmp_path), "GOCACHE": str(tmp_path), "GOPROXY": "off"}
    monkeypatch.setattr(build, "go_settings", lambda: settings)
    monkeypatch.setattr(build, "lacking_space", lambda _: None)


def writes(component: Component, scratch: Path, _: build.Run) -> None:
    target = scratch / component.output
    target.parent.mkdir(parents=True)
    target.write_text(component.name)


def stops_at(name: str, error: BaseException) -> Build:
    def stop(component: Component, scratch: Path, run: build.Run) -> None:
        writes(component, scratch, run)
        if component.name == name:
            raise error

    return stop


@pytest.mark.usefixtures("quiet")
def test_a_build_is_complete_and_costs_nothing_again(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    built = build.ensure_built(root, writes)
    assert built.complete()
    assert sorted(p for p in root.iterdir() if p.is_dir()) == sorted(
        [built.folder, *built.parts.values()]
    )
    # The engine finds its language host beside itself.
    for component in COMPONENTS:
        assert (built.folder / component.output).read_text() == component.name
    again = build.ensure_built(root, stops_at("engine", AssertionError("built twice")))
    assert again == built


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), Failure("no"), OSError(28, "full")])
def test_what_stops_a_build_leaves_nothing_half(tmp_path: Path, error: BaseException) -> None:
    root = tmp_path / "cache"
    with pytest.raises(type(error)):
        build.ensure_built(root, stops_at("host", error))
    assert [c.name for c in build.locate(root).missing()] == ["host", "provider"]
    assert list(root.glob("scratch-*")) == []


@pytest.mark.usefixtures("quiet")
def test_an_interrupted_build_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        build.ensure_built(root, stops_at("host", KeyboardInterrupt()))
    # As a power cut would leave it: nobody cleaned up.
    (root / "scratch-host" / "bin").mkdir(parents=True)
    (root / "scratch-host" / "bin" / "half").touch()
    names: list[str] = []

    def noting(component: Component, scratch: Path, run: build.Run) -> None:
        names.append(component.name)
        writes(component, scratch, run)

    built = build.ensure_built(root, noting)
    assert names == ["host", "provider"]
    assert built.complete()
    assert not (built.parts["host"] / "bin" / "half").exists()
    assert list(root.glob("scratch-*")) == []


# What an interruption in the middle of copying a module leaves, as whoever may not write what is
# read-only: root may, so as root these run as another user, in folders of that user's.
READ_ONLY = """\
import os, pathlib, sys
sys.path[0] = sys.argv[1]
from tools.toolchain import build
if os.geteuid() == 0:
    os.chown(sys.argv[1], 65534, -1)
    os.setuid(65534)  # after the imports: Python may be installed where only root goes
build.go_settings = lambda: {"GOMODCACHE": sys.argv[1], "GOCACHE": sys.argv[1], "GOPROXY": ""}
build.lacking_space = lambda _: None
root = pathlib.Path(sys.argv[1], "cache")

def half_a_copy(scratch):
    folder = scratch / "source" / "google"
    (folder / "inner").mkdir(parents=True)
    for place in (folder / "inner", folder):
        (place / "file.go").touch(0o444)
        (place / "link").symlink_to("/")
        place.chmod(0o555)

def interrupted(component, scratch, run):
    half_a_copy(scratch)
    raise KeyboardInterrupt

def whole(component, scratch, run):
    (scratch / component.output).parent.mkdir(parents=True)
    (scratch / component.output).touch()

if sys.argv[2] == "power cut":
    half_a_copy(root / "scratch-provider")
else:
    try:
        build.ensure_built(root, interrupted)
    except KeyboardInterrupt:
        pass
    print(len(list(root.glob("scratch-*"))), "left by an interruption")
build.ensure_built(root, whole)
print(len(list(root.glob("scratch-*"))), "left by a build")
"""


@pytest.mark.parametrize("what", ["interruption", "power cut"])
def test_read_only_copies_of_an_interrupted_build_are_in_nobodys_way(what: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "tools", Path(folder, "tools"))
        done = subprocess.run(
            [sys.executable, "-S", "-c", READ_ONLY, folder, what],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Permission" not in done.stderr
        assert done.returncode == 0, done.stderr
        expected = ["0 left by an interruption"] if what == "interruption" else []
        assert done.stdout.splitlines() == [*expected, "0 left by a build"]


@pytest.mark.usefixtures("quiet")
def test_the_second_of_two_builds_waits_says_so_and_builds_nothing(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    waiter = (
        "import sys; sys.path[0] = sys.argv[1]\n"
        "import pathlib; from tools.toolchain import build\n"
        "with build.only_one(pathlib.Path(sys.argv[2]), 'A build'): print('in')\n"
    )
    with ExitStack() as ends, ExitStack() as building:
        building.enter_context(build.only_one(root / "lock", "A build"))
        other = subprocess.Popen(
            [sys.executable, "-c", waiter, str(ROOT), str(root / "lock")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ends.enter_context(ending(other))
        assert other.stderr is not None
        assert "A build is under way in another process" in other.stderr.readline()
        assert other.poll() is None
        building.close()
        out, _ = other.communicate(timeout=30)
    assert out == "in\n"


@pytest.mark.usefixtures("quiet")
def test_who_waited_for_a_build_does_not_build_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"

    @contextmanager
    def held_by_another(_: Path, __: str) -> Iterator[None]:
        build.locate(root).folder.mkdir()  # which finishes while this one waits
        yield

    monkeypatch.setattr(build, "only_one", held_by_another)
    build.ensure_built(root, stops_at("engine", AssertionError("built twice")))


def test_the_whole_program_with_a_go_that_obeys(machine: Machine) -> None:
    machine.install("go", fakes.GO)
    first = machine.run("ensure")
    assert first.returncode == 0, first.stderr
    for words in ("building the engine (1 of 3)", "building the Google provider (3 of 3)"):
        assert words in first.stderr
    assert "an installed Pulumi 3.259 or newer skips this" in first.stderr
    built = build.locate(machine.toolchain)
    assert built.complete()
    assert os.access(built.bin() / "pulumi-language-python-exec", os.X_OK)
    assert not (built.parts["provider"] / "source").exists()
    calls = machine.calls()
    # Only the component of the interrupted build is built again.
    shutil.rmtree(built.folder)
    shutil.rmtree(built.parts["host"])
    second = machine.run("ensure")
    assert second.returncode == 0, second.stderr
    later = machine.calls()[len(calls) :]
    assert [c.split()[-1] for c in later if c.startswith("go build")] == [versions.HOST.package]
    # And then nothing is run at all.
    calls = machine.calls()
    assert machine.run("ensure").returncode == 0
    assert machine.calls() == calls


def says(machine: Machine, *words: str) -> None:
    """`ensure` fails with one sentence that has these words, and leaves nothing half."""
    result = machine.run("ensure")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    for word in words:
        assert word in last
    assert list(machine.toolchain.glob("scratch-*")) == []


def test_without_go(machine: Machine) -> None:
    says(machine, "Neither Pulumi nor Go is installed", "Go 1.25.11 or newer", "install Pulumi")


def test_with_an_old_go(machine: Machine) -> None:
    machine.install("go", fakes.GO)
    machine.environ["FAKE_GO_VERSION"] = "go1.19.8"
    says(machine, "Go 1.19.8 is too old", "install Go 1.25.11")


def test_with_a_go_that_may_not_fetch_a_newer_one(machine: Machine) -> None:
    machine.install("go", fakes.GO)
    machine.environ |= {"FAKE_GO_VERSION": "go1.24.1", "FAKE_GOTOOLCHAIN": "local"}
    says(machine, "Go 1.24.1 is too old and GOTOOLCHAIN=local", "install Go 1.25.11")


def test_with_a_go_that_does_not_run(machine: Machine) -> None:
    machine.install("go", "import sys; sys.exit('go: cannot find GOROOT directory: /nowhere')")
    says(machine, "`go env` failed (go: cannot find GOROOT", "install Go 1.25.11")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("dial tcp: lookup proxy.example: no such host", "could not be fetched from the Go"),
        ("write /x: no space left on device", "The disk filled up while building the Python"),
        (
            "verifying m@v1: checksum mismatch",
            "not the ones that tools/toolchain/ pins by checksum",
        ),
        ("x.go:1: undefined: y", "The whole log: "),
    ],
)
def test_with_a_go_that_fails_half_way(machine: Machine, output: str, words: str) -> None:
    machine.install("go", fakes.GO)
    machine.environ |= {"FAKE_FAILING": versions.HOST.package, "FAKE_GO_SAYS": output}
    says(machine, words)
    assert output in (machine.toolchain / "build.log").read_text()
    assert [c.name for c in build.locate(machine.toolchain).missing()] == ["host", "provider"]


def test_with_another_source_of_the_provider(machine: Machine) -> None:
    machine.install("go", fakes.GO)
    machine.environ["FAKE_SUM"] = "h1:other"
    says(machine, "The module proxy served another", "nothing was built from it")


def test_with_a_source_that_the_patch_was_not_written_for(machine: Machine) -> None:
    machine.install("go", fakes.GO)
    patched = machine.folder / "modules/google" / versions.PATCHED_FILE
    patched.chmod(0o644)
    patched.write_text("package google\n")
    says(machine, "is not the one that tools/toolchain/versions.py patches")


def test_with_a_cache_that_cannot_be_written(machine: Machine) -> None:
    machine.install("go", fakes.GO)
    machine.cache.write_text("a file where the folder should be")
    result = machine.run("ensure")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert str(machine.cache) in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_go_too(machine: Machine, number: signal.Signals) -> None:
    # This Go prints its process ID, then builds until it is ended.
    waiting = fakes.GO.replace(
        'elif args[0] == "build":',
        'elif args[0] == "build":\n'
        "    import signal\n"
        '    print(os.getpid(), file=open(os.environ["FAKE_PID"], "w"), flush=True)\n'
        "    signal.pause()",
    )
    machine.install("go", waiting)
    pids = machine.folder / "pid"
    os.mkfifo(pids)
    machine.environ["FAKE_PID"] = str(pids)
    program = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/toolchain/toolchain.py"), "ensure"],
        env=machine.environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores SIGINT, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    with ending(program):
        compiler = int(pids.read_text())
        program.send_signal(number)
        _, errors = program.communicate(timeout=30)
    assert program.returncode == 130
    assert errors.splitlines()[-1].startswith("Interrupted. Finished parts are kept")
    with pytest.raises(ProcessLookupError):
        os.kill(compiler, 0)
    assert list(machine.toolchain.glob("scratch-*")) == []


@pytest.mark.parametrize(
    ("version", "toolchain", "too_old"),
    [
        ("go1.26.8", "local", False),
        ("go1.25.11", "local", False),
        ("go1.25.10", "local", True),
        ("go1.25.10", "go1.25.10", True),
        ("go1.22.0", "auto", False),
        ("go1.22.0", "go1.22.0+auto", False),
        ("go1.22.0", "", False),
        ("go1.20.14", "", True),
        ("devel go-of-ones-own", "local", False),
    ],
)
def test_which_go_will_do(version: str, toolchain: str, too_old: bool) -> None:
    sentence = build.go_too_old(version, toolchain, (1, 25, 11))
    assert (sentence is not None) is too_old


def test_a_disk_is_judged_by_all_that_goes_onto_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert build.lacking_space([(tmp_path / "a", 2000), (tmp_path / "b", 2900)]) is None
    sentence = build.lacking_space([(tmp_path / "a", 2000), (tmp_path / "not/yet/b", 3100)])
    assert sentence is not None
    assert "about 5.1 GB of disk and 5.0 GB are free" in sentence
    assert str(tmp_path / "not/yet/b") in sentence
