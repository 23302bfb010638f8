"""The command line: Go's manner, the configuration file, errors in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.standin.flags import Address, FlagsError, duration, parse
from tests.lab.standin.client import ROOT


def test_without_flags_it_is_the_real_ones_defaults() -> None:
    options = parse([])
    assert (str(options.registry), str(options.beacon), options.http) == (":9000", ":9001", None)
    assert (options.store, options.stale_threshold) == (None, 1800)
    assert options.knobs.shown() == {
        "delay": 0.0,
        "refuse": "no",
        "new_keys_per_minute": 10,
        "ignore_whitelist": False,
        "plain_refusals": False,
        "away": False,
        "padding": 0,
        "in_place": False,
    }


def test_as_the_unit_starts_it(tmp_path: Path) -> None:
    """Every flag of the unit that runs the rendezvous on a VM is understood."""
    unit = (ROOT / "startup" / "units" / "pilot-rendezvous.service").read_text()
    (line,) = re.findall(r"^ExecStart=\S+ (.*)$", unit, re.MULTILINE)
    config = tmp_path / "rendezvous.json"
    # What pilot-node writes into it, with every token that there can be.
    config.write_text('{"admin-token": "a", "dashboard-token": "d", "repl-token": "r"}')
    line = line.replace("/run/pilot/rendezvous.json", str(config))
    options = parse(re.sub(r"\$\{\w+\}", "9", line).split())
    assert (options.admin_token, options.dashboard_token, options.repl_token) == ("a", "d", "r")
    assert options.registry == Address(host="", port=9)
    assert options.store == Path("/var/lib/pilot/registry/registry.json")
    assert options.log_format == "json"


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["-http", ":3000"], "http", Address(host="", port=3000)),
        (["--http=[::1]:3000"], "http", Address(host="::1", port=3000)),
        (["-stale-threshold", "1h30m"], "stale_threshold", 5400),
        (["-stale-threshold=500ms"], "stale_threshold", 0.5),
        (["-admin-token", "-x"], "admin_token", "-x"),
        (["-dashboard-token", "t"], "dashboard_token", "t"),
        (["-version"], "version", True),
        (["-version=false"], "version", False),
        (["-log-level", "warn"], "log_level", "warn"),
    ],
)
def test_flags(arguments: list[str], field: str, value: object) -> None:
    assert getattr(parse(arguments), field) == value


def test_knobs_are_flags() -> None:
    knobs = parse(
        ["-delay", "0.6", "-refuse=hang", "-new-keys-per-minute", "3", "-ignore-whitelist"]
    ).knobs
    assert (knobs.delay, knobs.refuse, knobs.new_keys_per_minute) == (0.6, "hang", 3)
    assert knobs.ignore_whitelist


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-nonsense", "1"], "-nonsense: there is no such flag"),
        (["registry"], '"registry" is no flag'),
        (["-store"], "-store needs a value"),
        (["-registry-addr", "9000"], "is not HOST:PORT"),
        (["-registry-addr", ":70000"], "is not HOST:PORT"),
        (["-stale-threshold", "soon"], "is not a duration"),
        (["-stale-threshold", "3"], "is not a duration"),
        (["-log-level", "loud"], "is none of debug, info, warn, error"),
        (["-refuse", "maybe"], "is none of no, error, disconnect, hang"),
        (["-delay", "-1"], "from 0 on|not a duration"),
        (["-delay", "nan"], "from 0 on"),
        (["-new-keys-per-minute", "few"], "whole number"),
        (["-config", "/nonexistent"], "No such file"),
    ],
)
def test_unusable_settings_are_named(arguments: list[str], said: str) -> None:
    with pytest.raises(FlagsError, match=said):
        parse(arguments)


def test_the_command_line_wins_over_the_file_and_strange_names_are_left_alone(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({"admin-token": "a", "stale_threshold": "5m", "http": ":1", "region": "x"})
    )
    options = parse(["-http", ":2", "-config", str(file)])
    assert (options.admin_token, options.stale_threshold) == ("a", 300)
    assert options.http == Address(host="", port=2)
    for broken in ("[", "[]", '{"log-level": "loud"}'):
        file.write_text(broken)
        with pytest.raises(FlagsError, match="-config"):
            parse(["-config", str(file)])


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("3m0s", 180), ("1.5h", 5400), ("100us", 1e-4)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


def test_a_bad_flag_ends_with_2_and_no_traceback() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "lab.standin", "-nonsense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith("-nonsense: there is no such flag\n")
    assert "Traceback" not in run.stderr
