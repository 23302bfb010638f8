"""What the user of `make lab` sees of its steps, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lab.fleet import phases, sessions
from lab.fleet.errors import DemoError
from lab.fleet.phases import Phases


def seen(tmp_path: Path, **terminal: bool | int) -> tuple[Phases, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, highlight=False, width=40, _environ={}, **terminal)  # type: ignore[arg-type]
    return Phases(tmp_path / "up.log", console), out


def steps(made: Phases) -> None:
    with made("image"):
        pass
    with made("pulumi up"):
        sessions.run([sys.executable, "-c", "print('one line'); print('the last')"], log=made.log)
        made.say("57/95 agents online")


def test_elsewhere_each_step_is_a_line(tmp_path: Path) -> None:
    made, out = seen(tmp_path)
    steps(made)
    assert out.getvalue() == "· image …\n· pulumi up …\n"
    assert made.log.read_text() == "one line\nthe last\n"


def test_on_a_terminal_one_line_moves_and_is_replaced(tmp_path: Path) -> None:
    made, out = seen(tmp_path, force_terminal=True)
    steps(made)
    shown = out.getvalue()
    assert "· pulumi up … 0 s  57/95 agents online" in shown
    # The moving line is one line, and is wiped: the finished steps stay.
    kept = re.sub(r"\x1b\[\??[0-9;]*[A-Za-z]", "", shown).split("\r")[-1]
    assert kept == "· pulumi up  0 s\n"
    assert shown.endswith("\x1b[2K· pulumi up  0 s\n")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is hidden"


def test_the_moving_line_has_what_the_command_said_last(tmp_path: Path) -> None:
    made, out = seen(tmp_path, force_terminal=True)
    made.log.write_text("of the step before\n")
    with made("image"):
        pass
    with made("pulumi up"), made.log.open("a") as log:
        log.write(
            "creating\n"
            + "x" * phases._TAIL_BYTES
            + "\nswarm-1-vm created (12s) and much more\n@ updating...\n\n"
        )
    assert "· pulumi up … 0 s  swarm-1-vm created (…" in out.getvalue()
    assert "of the step before" not in out.getvalue()


def test_a_step_that_fails_shows_what_it_said_and_where_all_of_it_is(tmp_path: Path) -> None:
    made, out = seen(tmp_path, force_terminal=True)
    with made.log.open("a") as log:
        log.write("of the step before\n")
    with pytest.raises(DemoError) as failed:
        sessions.run(["/bin/false"], log=made.log)
    assert "of the step before" not in str(failed.value)
    words = "\n".join(f"line {number}" for number in range(100))
    with pytest.raises(DemoError) as failed, made("pulumi up"):
        sessions.run(["/bin/sh", "-c", f"echo '{words}'; exit 3"], log=made.log)
    said = str(failed.value).splitlines()
    assert said[-2:] == ["    line 99", f"All that it said: {made.log}"]
    assert "    line 59" not in said
    assert out.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")
