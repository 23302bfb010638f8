"""The VM's tables of valid specs, read as data, so that a plan accepts no more than a VM.

Nothing here may import startup/. `startup/node/desired/fields.py` holds literals only, so its text
is parsed.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent / "startup" / "node" / "desired" / "fields.py"


@cache
def table(name: str) -> Any:
    """The literal called `name`. Raises KeyError where there is none."""
    return _tables()[name]


def bounds(path: str) -> tuple[int, int]:
    """The lowest and highest whole number at `path` of a spec."""
    low, high = table("NUMBERS")[path]
    return low, high


def pattern(path: str) -> re.Pattern[str]:
    """The pattern that the whole text at `path` of a spec matches."""
    return re.compile(table("KINDS")[table("TEXTS")[path]][0])


@cache
def _tables() -> dict[str, Any]:
    return {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(FILE.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
