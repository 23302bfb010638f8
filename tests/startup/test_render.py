"""Rendering: the same bytes from the same files, valid bash, nothing missing, below the limit."""

from __future__ import annotations

import bz2
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from components import startup
from components.startup import RenderError, render

UNITS = "/usr/local/lib/pilot/units"
PORT = 10_000


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """startup/, to be changed."""
    folder = tmp_path / "startup"
    shutil.copytree(startup.STARTUP_DIR, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_same_files_give_the_same_bytes(copy: Path) -> None:
    script = render(PORT)
    assert render(PORT) == script
    assert render(PORT, copy) == script
    assert script.sha256 == hashlib.sha256(script.text.encode()).hexdigest()
    # In another process, with another seed of hashing.
    other = subprocess.run(
        [
            sys.executable,
            "-c",
            "from components.startup import render; print(render(10_000).sha256)",
        ],
        capture_output=True,
        check=True,
        cwd=startup.STARTUP_DIR.parent,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        text=True,
    )
    assert other.stdout.strip() == script.sha256


def test_other_files_change_nothing(copy: Path) -> None:
    (copy / "node" / "__pycache__").mkdir()
    (copy / "node" / "__pycache__" / "spec.cpython-311.pyc").write_bytes(b"\0")
    (copy / "node" / "notes.txt").write_text("no module", encoding="utf-8")
    assert render(PORT, copy) == render(PORT)


@pytest.mark.parametrize("name", ["node/desired/spec.py", "units/pilot.slice", "pilot_node.py"])
def test_every_file_is_part_of_it(copy: Path, name: str) -> None:
    with (copy / name).open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    assert render(PORT, copy).sha256 != render(PORT).sha256


def test_the_marks_for_the_policy_pack_and_the_runner() -> None:
    lines = render(PORT).text.split("\n")
    assert lines[0] == "#!/bin/bash"
    assert lines[1] == "# pilot-fleet startup script"
    assert "/run/pilot/guard" in render(PORT).text
    # Whoever trims the value on its way to the VM must not change its hash.
    assert render(PORT).text == render(PORT).text.strip()
    assert "\r" not in render(PORT).text


def test_it_fits_with_room_to_grow() -> None:
    # 168 KB of 256 KiB (2026-11-30).
    assert len(render(PORT).text.encode()) < startup.LIMIT_BYTES * 11 // 16


def test_no_placeholder_is_left() -> None:
    text = render(PORT).text
    # What is embedded is verbatim, and may hold such marks of its own.
    for path in (startup.STARTUP_DIR / "node").rglob("*.py"):
        text = text.replace(path.read_text(encoding="utf-8"), "")
    for mark in ("{{", "}}", "{%", "{#"):
        assert mark not in text


def test_bash_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "startup-script"
    path.write_text(render(PORT).text, encoding="utf-8")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_shellcheck_takes_it(tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = shellcheck or shutil.which("shellcheck")
    if not shellcheck:
        pytest.skip("no shellcheck here")
    path = tmp_path / "startup-script"
    path.write_text(render(PORT).text, encoding="utf-8")
    done = subprocess.run(
        [shellcheck, "--severity=style", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def install(script: Path, root: Path) -> None:
    subprocess.run(
        ["bash", "-c", f'source "{script}"; ensure_node'],
        check=True,
        env={"PILOT_ROOT": str(root), "PATH": "/usr/bin:/bin"},
    )


def test_files_of_an_older_script_are_removed_and_nothing_is_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "startup-script"
    path.write_text(render(PORT).text, encoding="utf-8")
    root = tmp_path / "root"
    install(path, root)
    lib = root / "usr/local/lib/pilot"
    before = {p: p.stat().st_ino for p in lib.rglob("*")}
    (lib / "node" / "older.py").write_text("", encoding="utf-8")
    (lib / "node" / "desired" / ".new.spec.py").write_text("half", encoding="utf-8")
    (lib / "units" / "older.service").symlink_to("/dev/null")
    # As one before the packages left them, with what Python compiled of it; and a package.
    (lib / "node" / "pressure.py").write_text("", encoding="utf-8")
    (lib / "node" / "earlier").mkdir()
    (lib / "node" / "earlier" / "module.py").write_text("", encoding="utf-8")
    for name in ("pressure", "base_loop"):
        compiled = lib / "node" / "__pycache__" / f"{name}.cpython-311.pyc"
        compiled.parent.mkdir(exist_ok=True)
        compiled.write_bytes(name.encode())
    neighbour = root / "usr/local/sbin/somebody-elses"
    neighbour.write_text("", encoding="utf-8")
    install(path, root)
    # What is compiled of a module that is there stays: to compile takes seconds of an emulated CPU.
    compiled = lib / "node" / "__pycache__" / "base_loop.cpython-311.pyc"
    assert compiled.read_bytes() == b"base_loop"
    compiled.unlink()
    compiled.parent.rmdir()
    assert {p: p.stat().st_ino for p in lib.rglob("*")} == before
    assert neighbour.exists()
    # A link and a wrong mode are mended, and what a link points to is not written to.
    victim = tmp_path / "victim"
    victim.write_text("kept", encoding="utf-8")
    (lib / "node" / "desired" / "spec.py").unlink()
    (lib / "node" / "desired" / "spec.py").symlink_to(victim)
    (lib / "node" / "machine" / "retry.py").chmod(0o600)
    install(path, root)
    assert victim.read_text(encoding="utf-8") == "kept"
    assert not (lib / "node" / "desired" / "spec.py").is_symlink()
    assert (lib / "node" / "machine" / "retry.py").stat().st_mode & 0o777 == 0o644


def test_embedded_files_come_out_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "startup-script"
    path.write_text(render(PORT).text, encoding="utf-8")
    root = tmp_path / "root"
    install(path, root)
    lib = root / "usr/local/lib/pilot"
    found = {str(p.relative_to(lib)): p.read_bytes() for p in lib.rglob("*") if p.is_file()}
    folder = startup.STARTUP_DIR
    assert found == {
        str(p.relative_to(folder)): p.read_bytes()
        for p in (*folder.glob("node/**/*.py"), *folder.glob("units/*"))
    }
    program = root / "usr/local/sbin/pilot-node"
    assert program.read_bytes() == (folder / "pilot_node.py").read_bytes()
    assert program.stat().st_mode & 0o777 == 0o755


def test_a_variable_without_a_value_fails(copy: Path) -> None:
    with (copy / startup.TEMPLATE).open("a", encoding="utf-8") as stream:
        stream.write("\necho {{ forgotten }}\n")
    with pytest.raises(RenderError, match="'forgotten' is undefined"):
        render(PORT, copy)


def test_a_template_that_is_none_fails_with_its_line(copy: Path) -> None:
    (copy / startup.TEMPLATE).write_text("a\n{% for %}\n", encoding="utf-8")
    with pytest.raises(RenderError, match=r"startup\.sh\.j2:2: "):
        render(PORT, copy)


def test_a_script_over_the_limit_fails(copy: Path) -> None:
    # One byte over, so that the limit itself is what is tested.
    path = copy / startup.TEMPLATE
    template = path.read_text(encoding="utf-8")
    room = startup.LIMIT_BYTES - len(render(PORT, copy).text.encode())
    path.write_text(f"{template}#{'#' * (room - 2)}", encoding="utf-8")
    assert len(render(PORT, copy).text.encode()) == startup.LIMIT_BYTES
    path.write_text(f"{template}#{'#' * (room - 1)}", encoding="utf-8")
    with pytest.raises(RenderError, match="has 262145 bytes, Compute Engine takes 262144"):
        render(PORT, copy)


def test_compression_gives_the_same_bytes_everywhere() -> None:
    """Another hash here, and the script's hash depends on the machine that rendered it: every VM
    would be told to run it again, and the audit would find a script that nobody declared."""
    text = "".join(f"{n * n:x} line {n % 7}\n" for n in range(20_000)).encode()
    found = hashlib.sha256(bz2.compress(text, 9)).hexdigest()
    assert found == "2da2a832de73cd187abc4f00545d113c55ac964848dcfb5f8380a6ee327454d9"


def test_how_to_read_the_embedded_files(tmp_path: Path) -> None:
    """The command in its header."""
    text = render(PORT).text
    path = tmp_path / "SCRIPT"
    path.write_text(text, encoding="utf-8")
    head = text.partition("to read them:\n")[2].partition("\nset -e")[0]
    command = " ".join(line.removeprefix("#").strip() for line in head.splitlines())
    if not shutil.which("bunzip2"):
        pytest.skip("no bunzip2 here")
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("FILE 0644 ")
    spec = startup.STARTUP_DIR / "node" / "desired" / "spec.py"
    assert spec.read_text(encoding="utf-8") in done.stdout


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"no end of line", "does not end with a newline"),
        (b"a\0b\n", "holds a NUL"),
        (b"a\r\n", "carriage return"),
        (b"\xff\n", "not UTF-8"),
    ],
)
def test_files_that_cannot_be_embedded_are_refused(
    copy: Path, content: bytes, problem: str
) -> None:
    (copy / "units" / "broken").write_bytes(content)
    with pytest.raises(RenderError, match=problem):
        render(PORT, copy)


def test_a_file_that_holds_the_delimiter_is_a_file(copy: Path, tmp_path: Path) -> None:
    trap = "a\nEND_OF_FILES\nrm -rf /\n"
    (copy / "units" / "trap").write_text(trap, encoding="utf-8")
    path = tmp_path / "startup-script"
    path.write_text(render(PORT, copy).text, encoding="utf-8")
    install(path, tmp_path / "root")
    assert (tmp_path / f"root{UNITS}/trap").read_text(encoding="utf-8") == trap


def test_the_installer_may_not_hold_its_own_end(copy: Path) -> None:
    end = "END_OF_" + hashlib.sha256(b"unpack.py").hexdigest()[:12].upper()
    assert f"\n{end}\n" in render(PORT, copy).text
    with (copy / "unpack.py").open("a", encoding="utf-8") as stream:
        stream.write(f"{end}\n")
    with pytest.raises(RenderError, match=f"has a line {end}"):
        render(PORT, copy)


def test_a_line_that_looks_like_the_next_file_is_text(copy: Path, tmp_path: Path) -> None:
    trap = "a\nFILE 0644 1 /etc/passwd\nroot::0:0::/:/bin/sh\n"
    (copy / "units" / "trap").write_text(trap, encoding="utf-8")
    path = tmp_path / "startup-script"
    path.write_text(render(PORT, copy).text, encoding="utf-8")
    root = tmp_path / "root"
    install(path, root)
    assert (root / f"{UNITS.lstrip('/')}/trap").read_text(encoding="utf-8") == trap
    assert not (root / "etc").exists()


@pytest.mark.parametrize("name", ["startup.sh.j2", "node", "units", "pilot_node.py", "unpack.py"])
def test_a_part_that_is_missing_is_named(copy: Path, name: str) -> None:
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(RenderError, match=name):
        render(PORT, copy)
