"""The boundaries of the house: who may import whom."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.components.fleet import ROOT

ROOMS = {"components", "startup", "policy", "ops", "lab", "tools", "tests"}


def imported(file: Path) -> set[str]:
    """The top-level packages that a file imports (relative imports stay in their room)."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def files(room: str) -> Iterator[Path]:
    for file in sorted((ROOT / room).rglob("*")):
        if file.is_file() and (
            file.suffix == ".py" or file.read_bytes().startswith(b"#!/usr/bin/env python")
        ):
            yield file


def crossings(room: str, allowed: set[str]) -> list[str]:
    return [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files(room)
        for name in sorted(imported(file) & ROOMS - allowed - {room})
    ]


@pytest.mark.parametrize(
    ("room", "allowed"),
    [
        ("components", set()),
        ("startup", set()),
        ("policy", set()),
        ("ops", set()),
        ("lab/cloud", {"lab"}),
        ("lab/machines", {"lab"}),
        ("lab/standin", set()),
        # The production program is what it runs.
        ("lab/fleet", {"lab", "components"}),
        ("tools/toolchain", {"tools"}),
    ],
)
def test_rooms_do_not_reach_into_each_other(room: str, allowed: set[str]) -> None:
    assert crossings(room, allowed) == []


def test_what_runs_on_a_vm_needs_the_standard_library_only() -> None:
    own = {file.stem for file in files("startup")} | {"node", "startup"}
    foreign = {
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files("startup")
        for name in imported(file) - set(sys.stdlib_module_names) - own
    }
    assert foreign == set()


def test_the_lab_is_a_cloud_and_knows_no_pilot() -> None:
    found = [
        str(file.relative_to(ROOT))
        for part in ("cloud", "machines")
        for file in sorted((ROOT / "lab" / part).rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
        if b"pilot" in file.read_bytes().lower()
    ]
    assert found == []


@pytest.mark.parametrize(
    ("part", "allowed"),
    [
        ("machines", {"machines"}),
        ("cloud", {"machines", "cloud"}),
        ("standin", {"standin"}),
        ("fleet", {"machines", "cloud", "fleet"}),
    ],
)
def test_what_is_in_the_lab_knows_what_is_below_it(part: str, allowed: set[str]) -> None:
    found = [
        f"{file.relative_to(ROOT)} imports {name}"
        for file in files(f"lab/{part}")
        for name in parts_of("lab", file)
        if name not in allowed
    ]
    assert found == []


def parts_of(room: str, file: Path) -> set[str]:
    """The parts of `room` that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == room:
            names |= {f"{room}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module or "")
    return {name.split(".")[1] for name in names if name.startswith(f"{room}.")}


def test_the_program_does_not_ask_where_it_is() -> None:
    """Only the stack's configuration tells the lab from Google."""
    for file in [ROOT / "__main__.py", *files("components")]:
        names = {
            node.id if isinstance(node, ast.Name) else node.attr
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Name | ast.Attribute)
        }
        assert not {name for name in names if "lab" in name.lower().split("_")}, file


# A class on both sides of a boundary that no import may cross, for the same thing.
SAME_MEANING = {
    "Binary": {"components/spec.py", "startup/node/desired/spec.py"},
    "MachineType": {"components/machine_types.py", "lab/cloud/compute/catalog.py"},
}


def class_homes(sources: list[tuple[str, str]]) -> dict[str, set[str]]:
    """The files in which a class of each name is defined; `sources`: (file, its text)."""
    homes: dict[str, set[str]] = {}
    for file, text in sources:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(file)
    return homes


def test_a_class_name_has_one_meaning() -> None:
    """A reader who finds a name knows which thing it is. Name the new class after what it holds."""
    sources = [
        (str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
        for file in [ROOT / "__main__.py", *(f for room in ROOMS - {"tests"} for f in files(room))]
    ]
    shared = {name: homes for name, homes in class_homes(sources).items() if len(homes) > 1}
    assert shared == SAME_MEANING


def test_a_second_meaning_would_be_seen() -> None:
    assert class_homes([("a.py", "class Plan: ..."), ("b.py", "class Plan: ...")]) == {
        "Plan": {"a.py", "b.py"}
    }


def test_this_test_can_fail(tmp_path: Path) -> None:
    crossing = tmp_path / "x.py"
    crossing.write_text("import ops.status\nfrom lab import store\n")
    assert imported(crossing) == {"ops", "lab"}
