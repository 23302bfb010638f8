"""The table of what fits, before and after an update."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from components import outputs
from components.last_update import LastUpdate
from components.outputs import FitRow, fit_changes, fit_table
from tests.components.fleet import changed, parse

NEW = LastUpdate(boot_gb={}, disk_gb={}, devices={})


def row(**cells: str) -> FitRow:
    same = {"zone": "z-a", "machine": "e2", "agents": "30", "headroom": "50%", "binds": "memory"}
    return FitRow(**same | cells)


def test_each_vm_is_a_line_with_what_changes() -> None:
    before = {"a": row(), "b": row(), "gone": row(agents="1,500")}
    after = {"a": row(), "b": row(machine="n2", headroom="7%", binds="UDP ports"), "c": row()}
    assert fit_table(before, after).splitlines() == [
        "   VM    zone  machine  agents  headroom  binds",
        "   a     z-a   e2       30      50%       memory",
        "~  b     z-a   e2 → n2  30      50% → 7%  memory → UDP ports",
        "+  c     z-a   e2       30      50%       memory",
        "-  gone  z-a   e2       1,500   50%       memory",
    ]


def test_the_last_updates_outputs_are_read_back() -> None:
    """What the program exports is what it compares the next plan with."""
    values: dict[str, Any] = changed()
    config = parse(values)
    last = replace(
        NEW,
        fits=outputs.from_config(config)["vms"],
        zones=dict.fromkeys(config.fits, "us-central1-a"),
    )
    assert not any(line.startswith(("~", "+", "-")) for line in _lines(config, last))
    assert _lines(config, last)[2].split() == [
        *("swarm-1", "us-central1-a", "e2-standard-16", "3,000", "50%", "memory")
    ]
    values["swarm"][0] |= {"agents": 4000, "machineType": "n2-standard-16"}
    values["swarm"].pop()
    (larger,) = (line for line in _lines(parse(values), last) if line.startswith("~  swarm-1"))
    assert "e2-standard-16 → n2-standard-16  3,000 → 4,000  50% → 33%" in larger
    assert _lines(parse(values), last)[-1].startswith("-  swarm-3")


def test_a_new_stack_has_no_table_and_a_line_that_cannot_be_read_is_left_out() -> None:
    config = parse(changed())
    assert fit_changes(config, NEW) == ""
    assert fit_changes(config, replace(NEW, fits={"swarm-1": "of a later version"})) == ""
    # Written by a version that recorded no zones.
    last = replace(NEW, fits=outputs.from_config(config)["vms"])
    assert "? → us-central1-a" in fit_changes(config, last)


def _lines(config: Any, last: LastUpdate) -> list[str]:
    return fit_changes(config, last).splitlines()
