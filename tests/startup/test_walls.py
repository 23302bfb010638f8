"""startup/ is for Debian 12 as Google ships it: its Python imports the standard library only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from components.startup import STARTUP_DIR

LAUNCHERS = ("pilot_node.py", "unpack.py")
MODULES = sorted(STARTUP_DIR.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The first names of what a module imports from outside its own package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level > 1:
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
