"""What a spec may hold, as the VM sees it: read as data, so that a plan accepts no more.

startup/ is for a VM and nothing here imports it. `startup/node/desired/fields.py` is literals only;
they are read out of its text.
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
    """The literal that is called `name` there. Raises KeyError where there is none."""
    return _tables()[name]


def bounds(path: str) -> tuple[int, int]:
    """The least and the most of the whole number at `path` of a spec."""
    low, high = table("NUMBERS")[path]
    return low, high


def pattern(path: str) -> re.Pattern[str]:
    """What the text at `path` of a spec matches as a whole."""
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
