"""The one-file program: the same bytes every time, and it runs with the standard library only."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.standin.build import archive
from tests.lab.standin.client import ROOT, Identity, standin, whitelist

BUILD = [sys.executable, "-m", "lab.standin.build"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build") / "pilot-rendezvous"
    subprocess.run([*BUILD, str(out)], cwd=ROOT, check=True)
    return out


def test_same_sources_same_bytes(program: Path, tmp_path: Path) -> None:
    copy = tmp_path / "lab" / "standin"
    copy.mkdir(parents=True)
    for file in sorted((ROOT / "lab" / "standin").glob("*.py"), reverse=True):
        (copy / file.name).write_bytes(file.read_bytes())
        os.utime(copy / file.name, (1, 1))
    again = tmp_path / "again"
    environ = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "9"}
    subprocess.run([*BUILD, str(again)], cwd=tmp_path, env=environ, check=True)
    assert again.read_bytes() == program.read_bytes() == archive()
    assert os.access(again, os.X_OK)


def test_it_runs_by_itself_without_cryptography(program: Path, tmp_path: Path) -> None:
    """As on Debian: no site-packages (-S), isolated, from another folder."""
    whitelist(tmp_path)
    alone = (sys.executable, "-S", "-E", "-s", str(program))
    with standin(tmp_path, program=alone) as running, running.client() as client:
        assert running.running["verifier"] == "libcrypto"
        identity = Identity()
        node = client.ask(identity.register())["node_id"]
        assert client.ask(identity.signed("heartbeat", node))["type"] == "heartbeat_ok"
        forged = {**identity.register(), "signature": identity.sign("else")}
        assert client.ask(forged)["type"] == "error"
        assert running.stop() == 0


def test_it_is_executable_and_its_version_says_what_it_is(program: Path, tmp_path: Path) -> None:
    assert program.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    # The first python3 on PATH is this one.
    (tmp_path / "python3").symlink_to(sys.executable)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    run = subprocess.run(
        [str(program), "-version"], env=environ, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("pilot-rendezvous stand-in ")
    assert "not the real one" in run.stdout


def test_it_imports_the_standard_library_only() -> None:
    foreign = set()
    for file in (ROOT / "lab" / "standin").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            foreign |= {
                (file.name, root)
                for root in (name.split(".")[0] for name in names)
                if root not in sys.stdlib_module_names and root != "standin"
            }
    assert foreign == set()


@pytest.mark.parametrize("arguments", [[], ["-x"], ["a", "b"]])
def test_wrong_arguments_print_the_usage(arguments: list[str]) -> None:
    run = subprocess.run(
        [*BUILD, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (2, "usage: python -m lab.standin.build OUT\n")


def test_a_place_that_is_not_there_is_said(tmp_path: Path) -> None:
    out = str(tmp_path / "absent" / "file")
    run = subprocess.run([*BUILD, out], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, f"{out}: No such file or directory\n")
