"""The lab's parts of this checkout: its stack, its fleet and its state."""

from __future__ import annotations

from pathlib import Path

from components.config import FleetConfig
from components.config_reader import ConfigError
from components.stack_file import parse
from lab.fleet.errors import DemoError

ROOT = Path(__file__).resolve().parents[2]
STACK = "lab"
STATE = ROOT / ".lab"


def fleet() -> FleetConfig:
    """The fleet of the lab's stack. DemoError where its file names none."""
    path = ROOT / f"Pulumi.{STACK}.yaml"
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise DemoError(f"{path.name}: {error}") from None
