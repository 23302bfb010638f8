"""Checks variables of Go's runtime: values that it cannot read, or that would ruin the VM."""

from __future__ import annotations

import re
from collections.abc import Mapping

from . import fields
from .json_reader import kind_of


def go_problem(name: str, value: str, environment: Mapping[str, str]) -> str:
    """Why no Go program may run with `value` for the variable `name`, "" where it may. The plan
    makes the same check (components/config_vms.py)."""
    problem = ""
    if name == "GODEBUG":
        problem = _debug_problem(value)
    elif name == "GOMEMLIMIT":
        match = re.fullmatch(fields.GO_SIZE, value)
        size = int(match[1]) << fields.GO_UNITS.get(match[2], 0) if match else 0
        if value != "off" and not fields.GO_LIMITS[0] <= size <= fields.GO_LIMITS[1]:
            problem = f"{kind_of(value)} is no limit: off, or a size as 64MiB, from 16MiB on"
    elif name == "GOGC" and value == "off":
        if environment.get("GOMEMLIMIT") in (None, "", "off"):
            problem = "is off without a GOMEMLIMIT: nothing would ever be freed"
    elif name in fields.GO_NUMBERS:
        most, meaning = fields.GO_NUMBERS[name]
        if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= most:
            problem = f"{kind_of(value)} is not {meaning}"
    return problem


def _debug_problem(value: str) -> str:
    for setting in value.split(","):
        key, _, given = setting.partition("=")
        if key in fields.GO_DEBUG and given not in fields.GO_DEBUG[key]:
            allowed = " or ".join(fields.GO_DEBUG[key]) or "left out"
            return f"{kind_of(setting)} ends or ruins a program: {key} must be {allowed}"
    return ""
