"""The venv and the daemon's binary: set up once, again when their pins change, whole or not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.tools.toolchain.fakes import ROOT
from tools.toolchain import checkout
from tools.toolchain.failure import Failure


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A checkout. No test may add a file to its top folder: git would show it."""
    (tmp_path / "tools" / "toolchain").mkdir(parents=True)
    for name in ("requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / checkout.PILOT_REQUIREMENTS).write_text("pilotprotocol==1.2.3 \\\n  --hash=x\n")
    before = {each.name for each in tmp_path.iterdir() if each.is_file()}
    yield tmp_path
    # One test moves it.
    after = tmp_path.iterdir() if tmp_path.exists() else ()
    assert {each.name for each in after if each.is_file()} <= before


class Pip:
    """Takes the place of commands: notes them, and leaves their files."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.error: Exception | None = None

    def __call__(self, command: Sequence[str], _: str) -> None:
        self.commands.append([str(word) for word in command])
        if "--clear" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            # The same interpreter, which has pip.
            python.unlink(missing_ok=True)
            (Path(command[-1]) / ".place").unlink(missing_ok=True)
            python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
            python.chmod(0o755)
            (Path(command[-1]) / ".installing").unlink(missing_ok=True)
            (Path(command[-1]) / ".requirements").unlink(missing_ok=True)
        if "install" in command and self.error:
            raise self.error
        if "download" in command:
            folder = Path(command[command.index("--dest") + 1])
            with zipfile.ZipFile(folder / "p.whl", "w") as wheel:
                for name in checkout.BINARIES:
                    wheel.writestr(f"pilotprotocol/bin/{name}", name)

    def words(self) -> list[str]:
        return [
            next(w for w in ("--clear", "install", "download") if w in command)
            for command in self.commands
        ]


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    made = Pip()
    monkeypatch.setattr(checkout, "_run", made)
    return made


def test_a_venv_is_made_once(root: Path, pip: Pip) -> None:
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == ["--clear", "install"]
    assert "--require-hashes" in pip.commands[1]
    assert str(root / "requirements-dev.txt") not in pip.commands[1]
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == ["--clear", "install"]


def test_every_set_up_leaves_the_operators_command(root: Path, pip: Pip) -> None:
    checkout.ensure_venv(root, dev=False)
    command = root / ".venv" / "bin" / "pilot-fleet"
    made = command.read_text()
    assert f"exec' {root}/.venv/bin/python " in made
    assert os.access(command, os.X_OK)
    # In a venv that was there before the command, another checkout's (a copy), not executable.
    command.unlink()
    checkout.ensure_venv(root, dev=False)
    assert command.read_text() == made
    command.write_text(made.replace(str(root), "/elsewhere"))
    checkout.ensure_venv(root, dev=False)
    assert command.read_text() == made
    command.chmod(0o644)
    checkout.ensure_venv(root, dev=False)
    assert os.access(command, os.X_OK)
    before = command.stat().st_ino
    checkout.ensure_venv(root, dev=False)
    assert command.stat().st_ino == before, "it is not written where nothing changes"
    assert pip.words() == ["--clear", "install"]
    assert sorted(each.name for each in command.parent.iterdir()) == ["pilot-fleet", "python"]


def test_a_command_that_cannot_be_written_stops_nothing(
    root: Path, pip: Pip, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.ensure_venv(root, dev=False)
    command = root / ".venv" / "bin" / "pilot-fleet"
    command.unlink()
    command.mkdir()
    (command / "in the way").touch()
    checkout.ensure_venv(root, dev=False)
    assert f"{command} could not be written" in capsys.readouterr().err
    assert sorted(each.name for each in command.parent.iterdir()) == ["pilot-fleet", "python"]


def test_tests_need_more_and_then_a_plan_needs_nothing(root: Path, pip: Pip) -> None:
    checkout.ensure_venv(root, dev=False)
    checkout.ensure_venv(root, dev=True)
    assert str(root / "requirements-dev.txt") in pip.commands[-1]
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == ["--clear", "install", "install"]


@pytest.mark.parametrize("dev", [False, True])
def test_new_pins_are_installed(root: Path, pip: Pip, dev: bool) -> None:
    checkout.ensure_venv(root, dev=dev)
    (root / "requirements.txt").write_text("other\n")
    checkout.ensure_venv(root, dev=dev)
    assert pip.words() == ["--clear", "install", "install"]


@pytest.mark.parametrize("error", [Failure("no network"), OSError("killed")])
def test_an_interrupted_installation_starts_again_from_nothing(
    root: Path, pip: Pip, error: Exception
) -> None:
    pip.error = error
    with pytest.raises(type(error)):
        checkout.ensure_venv(root, dev=False)
    pip.error = None
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == ["--clear", "install", "--clear", "install"]
    checkout.ensure_venv(root, dev=False)
    assert len(pip.commands) == 4


def test_a_venv_that_lost_its_python_is_made_again(root: Path, pip: Pip) -> None:
    checkout.ensure_venv(root, dev=False)
    (root / ".venv" / "bin" / "python").unlink()
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == ["--clear", "install", "--clear", "install"]


def test_a_checkout_that_moved_gets_a_new_venv(root: Path, pip: Pip) -> None:
    checkout.ensure_venv(root, dev=False)
    moved = root.with_name("moved")
    root.rename(moved)
    checkout.ensure_venv(moved, dev=False)
    assert pip.words() == ["--clear", "install", "--clear", "install"]
    assert pip.commands[2][-1] == str(moved / ".venv")
    checkout.ensure_venv(moved, dev=False)
    (moved / "requirements.txt").write_text("other\n")
    checkout.ensure_venv(moved, dev=False)
    assert pip.words()[4:] == ["install"]


# Small wheels' worth of a venv that somebody else made.
PINS = "one-thing[extra]==1.2.3 \\\n    --hash=sha256:00\nother.thing==4 --hash=sha256:11\n"


def foreign(root: Path, *installed: str, whole: bool = True) -> None:
    """As `pulumi install`: a venv of its own, with pip and packages; no stamp of ours."""
    (root / "requirements.txt").write_text(PINS)
    (root / "requirements-dev.txt").write_text("for-tests==5 --hash=sha256:22\n")
    venv = root / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    for each in ("pip==26.0", *installed):
        name, _, version = each.partition("==")
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if whole:
            (info / "INSTALLER").write_text("pip\n")


BASE = ("One_Thing==1.2.3", "other_thing==4")


def test_a_venv_that_pulumi_install_has_made_is_taken_as_it_is(root: Path, pip: Pip) -> None:
    foreign(root, *BASE)
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == []
    # The packages for tests are added.
    checkout.ensure_venv(root, dev=True)
    assert pip.words()[-1] == "install"
    words = len(pip.words())
    checkout.ensure_venv(root, dev=False)
    assert len(pip.words()) == words


def test_one_with_what_tests_need_is_whole_for_both(root: Path, pip: Pip) -> None:
    foreign(root, *BASE, "for_tests==5")
    checkout.ensure_venv(root, dev=True)
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == []


@pytest.mark.parametrize(
    "installed",
    [
        ("one_thing==1.2.3",),
        ("one_thing==1.2.4", "other_thing==4"),
        (*BASE, "another==1"),
        (),
    ],
)
def test_one_with_anything_else_is_set_up(root: Path, pip: Pip, installed: tuple[str, ...]) -> None:
    foreign(root, *installed)
    checkout.ensure_venv(root, dev=False)
    assert pip.words()[-1] == "install"


def test_one_that_was_interrupted_or_was_moved_is_made_again(root: Path, pip: Pip) -> None:
    foreign(root, *BASE, whole=False)
    checkout.ensure_venv(root, dev=False)
    assert pip.words() == ["--clear", "install"]
    elsewhere = root / "elsewhere"
    (elsewhere / "tools" / "toolchain").mkdir(parents=True)
    foreign(elsewhere, *BASE)
    moved = elsewhere.with_name("moved")
    elsewhere.rename(moved)
    checkout.ensure_venv(moved, dev=False)
    assert pip.words() == ["--clear", "install"] * 2


def test_a_checkout_that_moved_or_another_python_is_set_up_again(root: Path) -> None:
    files = checkout.REQUIREMENTS
    stamp = checkout.stamp(root, files, "3.11.9")
    assert checkout.stamp(root, files, "3.12.1") != stamp
    moved = root / "moved"
    moved.mkdir()
    (moved / "requirements.txt").write_bytes((root / "requirements.txt").read_bytes())
    assert checkout.stamp(moved, files, "3.11.9") != stamp


def test_the_binary_is_fetched_once_and_runs(root: Path, pip: Pip) -> None:
    checkout.ensure_artifacts(root)
    folder = root / "artifacts" / "1.2.3"
    daemon = folder / "pilot-daemon"
    assert daemon.read_text() == "pilot-daemon"
    assert daemon.stat().st_mode & 0o777 == 0o755
    assert sorted(p.name for p in folder.iterdir()) == ["pilot-daemon", "pilotctl"]
    checkout.ensure_artifacts(root)
    assert pip.words() == ["download"]


def test_a_rendezvous_of_ones_own_is_left_alone(root: Path, pip: Pip) -> None:
    own = root / "artifacts" / "1.2.3" / "pilot-rendezvous"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    checkout.ensure_artifacts(root)
    assert own.read_text() == "mine"


def test_a_wheel_without_the_binary_is_a_sentence(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with zipfile.ZipFile(tmp_path / "p.whl", "w") as wheel:
        wheel.writestr("other", "")
    with pytest.raises(Failure, match=r"p\.whl holds no pilotprotocol/bin/pilot-daemon"):
        checkout.unpack(
            tmp_path / "p.whl", "pilotprotocol/bin/pilot-daemon", tmp_path / "out", scratch
        )
    assert not (tmp_path / "out").exists()


def test_the_wheel_is_pinned_by_hash() -> None:
    text = (ROOT / checkout.PILOT_REQUIREMENTS).read_text()
    assert checkout.pinned_version(text) == "1.18.0"
    assert "--hash=sha256:" in text
    with pytest.raises(Failure, match="does not pin"):
        checkout.pinned_version("pilotprotocol>=1\n")
