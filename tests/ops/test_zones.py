"""A fleet in two zones: each command finds every VM, and asks for it in its own zone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cloud.server import serve
from ops import plan as plans
from ops.fleet import Instance, newest_rendezvous
from tests.lab.cloud.client import COMPUTE
from tests.ops.conftest import AGENTS, Ops
from tests.ops.runners import SWARM, begin, carry_out, runner
from tests.ops.simulated import RENDEZVOUS, SCRIPT, Simulated, sha256
from tests.ops.test_refusals import outage

OTHER = "us-central1-b"
ZONES = {
    RENDEZVOUS: "us-central1-a",
    "swarm-1": OTHER,
    "swarm-2": "us-central1-a",
    "swarm-3": OTHER,
}


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Simulated]:
    with serve(tmp_path / "state") as serving:
        made = Simulated(serving, AGENTS, ZONES)
        made.tick()
        yield made


def test_the_status_shows_every_vm_with_its_zone(ops: Ops) -> None:
    found = ops("status", "--json")
    assert found.code == 0
    assert {row["vm"]: row["zone"] for row in found.json["rows"]} == ZONES
    assert all(row["phase"] in ("whole", "serving") for row in found.json["rows"])
    lines = ops("status").out.splitlines()
    assert lines[0].split()[:2] == ["VM", "zone"]
    assert {line.split()[0]: line.split()[1] for line in lines[1:5]} == ZONES


def test_a_zone_that_does_not_answer_hides_its_vms_only(ops: Ops, simulated: Simulated) -> None:
    outage(simulated, f"zones/{OTHER}")
    found = ops("status", "--json")
    assert found.code == 1
    assert [row["vm"] for row in found.json["rows"]] == [RENDEZVOUS, "swarm-2"]
    # Nobody said that these agents are lost: the rendezvous was told of them.
    assert found.json["wanted"] == sum(AGENTS.values())
    assert f"zones/{OTHER} does not answer" in ops("status").out


def test_a_reboot_goes_through_all_zones(simulated: Simulated) -> None:
    driver = runner(simulated, [])
    carry_out(driver, *begin(driver, plans.REBOOT))
    assert [simulated.nodes[name].boot for name in SWARM] == [2, 2, 2]
    powered = [each for each in simulated.asked if each.endswith(("/stop", "/start"))]
    # A boot of the lab takes no second, so a VM may be asked twice.
    assert set(powered) == {
        f"POST {COMPUTE}/zones/{ZONES[name]}/instances/{name}/{verb}"
        for name in SWARM
        for verb in ("stop", "start")
    }


def test_a_restart_goes_through_all_zones(simulated: Simulated) -> None:
    lowest: dict[str, int] = dict(AGENTS)

    def note() -> None:
        for name in SWARM:
            lowest[name] = min(lowest[name], simulated.nodes[name].running)

    simulated.after_tick = note
    driver = runner(simulated, [])
    carry_out(driver, *begin(driver, plans.RESTART))
    assert set(lowest.values()) == {0}
    assert [simulated.nodes[name].running for name in SWARM] == [60, 120, 200]


@pytest.mark.usefixtures("ticking")
def test_an_order_for_a_vm_in_another_zone(ops: Ops, simulated: Simulated) -> None:
    assert ops("drain", "swarm-3").code == 0
    assert [simulated.nodes[name].running for name in SWARM] == [0, 120, 200]


def test_the_console_of_a_vm_in_another_zone(ops: Ops, simulated: Simulated) -> None:
    simulated.console(b"from the other zone\n")
    assert "from the other zone" in ops("logs", "swarm-3", "--no-follow", "--all").out


def test_the_audit_looks_at_the_settings_of_each_zone(ops: Ops, simulated: Simulated) -> None:
    assert ops("audit", "--json").json["looked_at"]["zone"] == 2
    path = f"{COMPUTE}/zones/{OTHER}/instanceSettings"
    fingerprint = simulated.client.get(path)["fingerprint"]
    metadata = {"items": {"startup-script": "echo zonal"}}
    simulated.client.do("PATCH", path, {"fingerprint": fingerprint, "metadata": metadata})
    (found,) = ops("audit", "--json").json["findings"]
    assert found["rule"] == "ghost-zone"
    assert found["remedy"].startswith(f"take the key out of the instance settings of {OTHER}")


def test_the_audit_names_a_vm_in_another_zone_than_declared(
    ops: Ops, simulated: Simulated, tmp_path: Path
) -> None:
    metadata = {
        name: {each["key"]: each["value"] for each in simulated.instance(name)["metadata"]["items"]}
        for name in ZONES
    }
    file = tmp_path / "declared.json"
    declared = {"script": sha256(SCRIPT), "metadata": metadata, "zones": ZONES}
    file.write_text(json.dumps(declared))
    assert ops("audit", "--declared", str(file)).code == 0
    file.write_text(json.dumps(declared | {"zones": ZONES | {"swarm-3": "us-central1-f"}}))
    (found,) = ops("audit", "--json", "--declared", str(file)).json["findings"]
    assert (found["rule"], found["where"]) == ("zone-differs", f"zones/{OTHER}/instances/swarm-3")
    assert found["what"] == "the VM of that name is declared in us-central1-f"


def test_of_two_rendezvous_the_one_that_started_last_counts() -> None:
    """While it moves to another zone, and where the old zone does not answer."""
    old, new = (
        Instance(
            name="pilot-rendezvous",
            zone=f"us-central1-{letter}",
            state="RUNNING",
            machine="n2-standard-4",
            labels={"pilot-fleet": "swarm", "pilot-role": "rendezvous"},
            metadata={},
            started=started,
        )
        for letter, started in (("a", 100.0), ("b", 200.0))
    )
    for order in ((old, new), (new, old)):
        assert newest_rendezvous(order) is new
    assert newest_rendezvous(()) is None
