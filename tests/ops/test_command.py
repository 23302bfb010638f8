"""The command `pilot-fleet`: runs anywhere, completes, says its version, and is quick to help."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ops.cli import app
from ops.lazy import lazy
from ops.version import version
from tests.components.fleet import ROOT

HELP = """\
import json, sys
from ops.cli import main
for command in sys.argv[1:]:
    assert main([*command.split(), "--help"], program="pilot-fleet") == 0, command
lazily = {name for name, each in sys.modules.items() if type(each).__name__ == "_LazyModule"}
loaded = {name for name in set(sys.modules) - lazily if name.startswith("ops.")}
print("loaded", json.dumps(sorted(loaded | {name.split(".")[0] for name in sys.modules})))
"""
# What says which commands and options there are.
_LIGHT = {"cli", "cli_act", "cli_context", "cli_look", "cli_options", "defaults", "errors", "lazy"}


def run(
    command: Path, *arguments: str, cwd: Path, **environ: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd), "NO_GCE_CHECK": "true", **environ}
    return subprocess.run(
        [command, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_runs_in_any_folder_and_through_a_link(command: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(command)
    # Another `ops` in the folder is not this one.
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "cli.py").write_text("raise SystemExit('another ops')")
    for each in (command, link):
        found = run(each, "--version", cwd=tmp_path)
        assert (found.returncode, found.stdout) == (0, f"pilot-fleet {version()}\n"), found
        wrong = run(each, "nonsense", cwd=tmp_path)
        assert wrong.returncode == 2
        assert "Usage: pilot-fleet " in wrong.stderr
        offline = run(each, "status", cwd=tmp_path)
        assert offline.returncode == 3
        assert offline.stderr.startswith("pilot-fleet: "), offline


@pytest.mark.parametrize("word", ["con", "context us", "context use l", "--context l"])
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_contexts(
    command: Path, tmp_path: Path, shell: str, word: str
) -> None:
    added = run(command, "context", "add", "lab", "--project", "p", cwd=tmp_path)
    assert added.returncode == 0, added
    line = f"pilot-fleet {word}"
    found = run(
        command,
        cwd=tmp_path,
        _PILOT_FLEET_COMPLETE=f"complete_{shell}",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split()) - 1),
        _TYPER_COMPLETE_ARGS=line,
    )
    wanted = {"con": "context", "context us": "use"}.get(word, "lab")
    assert found.returncode == 0, found
    assert wanted in found.stdout.replace('"', " ").split(), found
    assert found.stderr == ""


@pytest.mark.parametrize("broken", ["{", None])
def test_completion_is_silent_where_the_contexts_cannot_be_read(
    command: Path, tmp_path: Path, broken: str | None
) -> None:
    file = tmp_path / ".config" / "pilot-fleet" / "contexts.json"
    file.parent.mkdir(parents=True)
    if broken is None:
        file.mkdir()
    else:
        file.write_text(broken)
    line = {"COMP_WORDS": "pilot-fleet context use ", "COMP_CWORD": "3"}
    found = run(command, cwd=tmp_path, _PILOT_FLEET_COMPLETE="complete_bash", **line)
    assert (found.stdout.strip(), found.stderr) == ("", "")


def test_bash_completes_with_what_the_command_shows(command: Path, tmp_path: Path) -> None:
    """As an operator who has put the venv on PATH and installed completion."""
    script = (
        "set -e; pilot-fleet --install-completion bash >/dev/null; . ~/.bashrc\n"
        "COMP_WORDS=(pilot-fleet und); COMP_CWORD=1; _pilot_fleet_completion pilot-fleet\n"
        'echo "${COMPREPLY[@]}"'
    )
    environment = {"PATH": f"{command.parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    # Typer asks its parent processes for the shell, and a test's are none.
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["undrain"]), done


def shown() -> list[str]:
    """Every command line that has a help of its own."""
    top = typer.main.get_command(app)
    found = [""]
    for name, each in top.commands.items():  # type: ignore[attr-defined]
        found += [name, *(f"{name} {below}" for below in getattr(each, "commands", ()))]
    return found


def test_help_loads_what_it_shows_and_nothing_else() -> None:
    commands = shown()
    assert {"", "status", "restart", "context", "context add"} <= set(commands)
    done = subprocess.run(
        [sys.executable, "-c", HELP, *commands],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.rpartition("loaded ")[2]))
    assert not loaded & {"google", "grpc", "requests", "cryptography", "rich.progress", "textual"}
    light = {f"ops.{name}" for name in _LIGHT} | {"ops.terminal"}
    assert {name for name in loaded if name.startswith("ops.")} == light


def test_a_lazy_module_runs_at_its_first_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel" / "__init__.py").touch()
    (tmp_path / "parcel" / "late.py").write_text("import sys\nsys.ran = True\nVALUE = 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    late = lazy("parcel.late")
    assert not hasattr(sys, "ran")
    from parcel import late as same  # type: ignore[import-not-found] # noqa: PLC0415

    assert same is late is lazy("parcel.late")
    assert not hasattr(sys, "ran")
    assert late.VALUE == 5
    assert sys.ran  # type: ignore[attr-defined]
    del sys.ran  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError, match=r"parcel\.other"):
        lazy("parcel.other")


def test_a_version_without_git_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    assert version(tmp_path) == "1.2.3"
    (tmp_path / ".git").mkdir()
    assert version(tmp_path) == "1.2.3", "no commit is known"
    assert version().startswith("0.1.0")
