"""startup/ is for Debian 12 as Google ships it: its Python imports the standard library only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from components.startup import STARTUP_DIR

LAUNCHERS = ("pilot_node.py", "unpack.py")
MODULES = sorted(STARTUP_DIR.rglob("*.py"))


def depth(path: Path) -> int:
    """How many levels up a module's own package is."""
    return len(path.relative_to(STARTUP_DIR).parts) - 1


def imported(path: Path) -> set[str]:
    """The first names of what a module imports from outside its own package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level > depth(path):
            found.add("..")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_only_the_standard_library(path: Path) -> None:
    # The launchers alone import the package, by the name that it has on a VM.
    allowed = {"node"} if path.name in LAUNCHERS else set()
    assert imported(path) - sys.stdlib_module_names == allowed


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 10


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_import_does_anything(path: Path) -> None:
    """Habit 5: at the top of a module stand definitions, constants and imports, and no calls but
    of what makes constants."""
    if path.name == "pilot_node.py":
        pytest.skip("a launcher: to do something is what it is for")
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        doc = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        guarded = isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test)
        assert (
            doc
            or guarded
            or not isinstance(
                statement, ast.Expr | ast.For | ast.While | ast.With | ast.If | ast.Try
            )
        ), f"{path.name}:{statement.lineno}"


# The program's packages, from the ground up: one imports those before it, never one beside it or
# after it. "" is the program's own folder: what is run, and the loops that hold all of it together.
ORDER = (
    {"machine"},
    {"desired"},
    {"setup"},
    {"pressure", "rollout"},
    {"swarm", "rendezvous"},
    {"report"},
    {""},
)
PROGRAM = STARTUP_DIR / "node"


def rank(package: str) -> int:
    return next(n for n, names in enumerate(ORDER) if package in names)


def package_of(parts: list[str]) -> str:
    """The package of a module of the program: `["swarm", "decide"]` is in "swarm"."""
    return parts[0] if parts and (PROGRAM / parts[0]).is_dir() else ""


def upward(here: list[str], source: str) -> list[str]:
    """Imports by the module `here` (its path below the program) of what is not below it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*here[: len(here) - node.level], *(node.module or "").split(".")]
        base = [part for part in base if part]
        names = [alias.name for alias in node.names] if not base else [""]
        for name in names:
            there = package_of([*base, name] if name else base)
            if there != package_of(here) and rank(there) >= rank(package_of(here)):
                found.append(f"{'/'.join(here)} imports {'/'.join([*base, name]).rstrip('/')}")
    return found


def test_no_import_runs_back_up() -> None:
    found = []
    for path in sorted(PROGRAM.rglob("*.py")):
        here = list(path.relative_to(PROGRAM).with_suffix("").parts)
        found += upward(here, path.read_text(encoding="utf-8"))
    assert found == []


def test_every_package_has_its_place() -> None:
    packages = {p.name for p in PROGRAM.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert packages | {""} == set().union(*ORDER)


def test_an_import_upward_would_be_seen() -> None:
    assert upward(["machine", "x"], "from ..desired import spec")
    assert upward(["pressure", "x"], "from ..rollout.rollout import advance")
    assert upward(["report", "x"], "from ..follower import Follower")
    assert upward(["report", "x"], "from .. import follower")
    assert not upward(["swarm", "x"], "from ..machine import files\nfrom . import decide")
    assert not upward(["follower"], "from . import base_loop\nfrom .report.status import Said")


def test_no_package_hides_a_module_of_an_earlier_program() -> None:
    """A script of before the packages removes no folders: back at it, `node/pressure.py` has to win
    over what is left of `node/pressure/`, as it does over a folder without an __init__.py."""
    assert [p for p in PROGRAM.rglob("__init__.py") if p.parent != PROGRAM] == []
