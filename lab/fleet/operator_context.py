"""The operator's context `lab`, with which `pilot-fleet` finds this lab's fleet by itself.

The operator's command line keeps contexts. It is asked as anybody asks it: as a program. A lab
without a context is a lab all the same, so nothing here is an error.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from components.config import FleetConfig
from lab.fleet import checkout, cloud
from lab.fleet.errors import DemoError

NAME = "lab"
_LIMIT_S = 60.0


def make(config: FleetConfig) -> str:
    """Makes the context, and the current one where there is no other; the command that then shows
    the fleet as it moves. A context of that name for another place is left as it is."""
    place = ["--project", config.project, "--endpoint", cloud.API]
    if problem := _ask("add", NAME, *place)[1]:
        print(f"  no context for `pilot-fleet`: {problem}", flush=True)
        return f".venv/bin/pilot-fleet {' '.join(place)} live"
    if _known().get("current") == NAME:
        return ".venv/bin/pilot-fleet live"
    return f".venv/bin/pilot-fleet --context {NAME} live"


def forget() -> None:
    """Removes the context, unless it is another place's, or another checkout's lab answers."""
    try:
        answers = cloud.lab_status() is not None
    except DemoError:
        return
    contexts = _known().get("contexts", {})
    if answers or contexts.get(NAME, {}).get("endpoint") != cloud.API:
        return
    if problem := _ask("remove", NAME)[1]:
        print(f"  the context {NAME} is still there: {problem}", flush=True)


def _known() -> dict[str, Any]:
    """The operator's contexts; none where they cannot be read."""
    text, problem = _ask("list", "--json")
    found = {} if problem else json.loads(text)
    assert isinstance(found, dict)
    return found


def _ask(*words: str) -> tuple[str, str]:
    """(what `pilot-fleet context` printed, why it failed or "")."""
    command = [sys.executable, "-m", "ops", "context", *words]
    try:
        done = subprocess.run(
            command,
            cwd=checkout.ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    said = done.stderr.strip().removeprefix("ops: ").splitlines()
    return done.stdout, "" if done.returncode == 0 else (said or ["no answer"])[-1]
