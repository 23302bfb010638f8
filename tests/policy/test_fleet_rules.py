"""The project's script, the fleet's capacity, and the machine table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from policy import fits, project_script
from policy.machine_memory import memory_gb
from policy.spec import parse_spec
from policy.values import UNKNOWN, Resource, Violation
from tests.policy.planned import INSTANCE, SCRIPT, owner, planned, spec, vm, vm_props


def script_problems(resource: Resource, **config: Any) -> list[Violation]:
    return list(
        project_script.guarded_script(resource, project_script.ProjectScriptConfig(**config))
    )


def test_a_good_script_passes() -> None:
    assert script_problems(owner()) == []


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (UNKNOWN, "not known yet"),
        (None, "no startup script"),
        ("", "no startup script"),
        ("echo\n# pilot-fleet startup script\n/run/pilot/guard", "#!"),
        ("#!/bin/sh\n\n# pilot-fleet startup script\n/run/pilot/guard", "second line"),
        ("#!/bin/sh", "second line"),
        ("#!/bin/sh\n# pilot-fleet startup script\n", "/run/pilot/guard"),
        (SCRIPT + "é" * 131072, "too many"),
        (SCRIPT + "x" * (262144 - len(SCRIPT)), "has 262144 bytes, 1 too many"),
    ],
)
def test_a_bad_script_is_refused(script: Any, says: str) -> None:
    findings = script_problems(owner(script))
    assert any(says in str(finding) for finding in findings)
    assert not any(finding.unjudged for finding in findings)


def test_the_biggest_script_passes() -> None:
    assert script_problems(owner(SCRIPT + "x" * (262143 - len(SCRIPT)))) == []


def test_script_settings() -> None:
    assert script_problems(owner(), secondLine="# other")
    assert script_problems(owner(), contains=["flock"])
    assert script_problems(owner(), maxBytes=20)
    assert script_problems(owner("#!/bin/sh\n"), secondLine="", contains=[]) == []


def test_nobody_may_own_all_of_the_projects_metadata() -> None:
    kind = "gcp:compute/projectMetadata:ProjectMetadata"
    for props in ({"metadata": {"a": "b"}}, {"metadata": UNKNOWN}, {}):
        [finding] = script_problems(planned(kind, props))
        assert "wipes" in str(finding)


def one(*resources: Resource) -> list[tuple[str | None, str]]:
    found = project_script.one_script(resources)
    return [(who.name if who else None, str(finding)) for who, finding in found]


def test_one_owner_and_vms_that_expect_its_script() -> None:
    assert one(owner(), vm(spec())) == []
    assert one(owner()) == []
    assert one() == []


def test_no_owner() -> None:
    [(culprit, text)] = one(vm(spec()))
    assert culprit is None
    assert "1 VMs of the fleet and no startup script" in text


def test_two_owners_are_both_named() -> None:
    found = one(owner(name="a"), owner(name="b"), vm(spec()))
    assert [culprit for culprit, _ in found] == ["a", "b"]
    assert "a, b" in found[0][1]


def test_other_items_are_no_owners() -> None:
    assert one(owner(), owner("TRUE", name="login", key="enable-oslogin"), vm(spec())) == []


@pytest.mark.parametrize("script", [{"sha256": "0" * 64}, {"sha256": None}, {}, None, "x"], ids=str)
def test_a_vm_that_expects_another_script(script: Any) -> None:
    [(culprit, text)] = one(owner(), vm(spec(script=script), name="swarm-7"))
    assert culprit == "swarm-7"
    assert "sha256" in text


def test_unknown_values_are_left_to_the_other_policies() -> None:
    assert one(owner(UNKNOWN), vm(spec())) == []
    assert one(owner(), vm(UNKNOWN)) == []


def vm_problems(document: Any, machine: Any = "e2-standard-16", **config: Any) -> list[str]:
    findings = fits.vm_fits(vm(document, machine), fits.VmConfig(**config))
    return [str(finding) for finding in findings if not finding.unjudged]


def test_the_seeds_fleet_fits() -> None:
    assert vm_problems(spec(agents=3000, memory_activeConnections=300)) == []
    big = spec(agents=5000, memory_activeConnections=500)
    assert vm_problems(big, "n2d-highcpu-128") == []
    small = spec(agents=1500, memory_activeConnections=150)
    assert vm_problems(small, "e2-standard-8") == []
    assert vm_problems(spec("rendezvous", agents=9500), "n2-standard-4") == []


def test_memory_to_the_last_agent() -> None:
    # 16 GiB = 16384 MiB, less 3000: 13384 MiB; 10 MiB an agent and a tenth of them connected at
    # 4 MiB make 10.4 MiB an agent: 1286 fit (13374.4) and 1290 (13416) do not.
    good = spec(agents=1280, memory_activeConnections=128)
    assert vm_problems(good, "e2-standard-4") == []
    [text] = vm_problems(spec(agents=1290, memory_activeConnections=129), "e2-standard-4")
    assert "need 13416 MiB; e2-standard-4 has 16384 MiB, of which 3000 are reserved" in text
    assert "At most 1286 agents fit" in text


def test_no_agents_at_all_are_a_good_spec() -> None:
    assert vm_problems(spec(agents=0, basePort=0, memory_activeConnections=0)) == []


def test_a_missing_spec_is_called_missing_and_an_unknown_one_is_none() -> None:
    assert parse_spec(UNKNOWN) is UNKNOWN
    [text] = vm_problems(None)
    assert "there is no pilot-spec" in text


def test_exactly_full_fits() -> None:
    document = spec(agents=100, memory_activeConnections=0, memory_reserveMb=3096)
    assert vm_problems(document, "e2-custom-2-4096") == []
    assert vm_problems(spec(agents=101, memory_activeConnections=0, memory_reserveMb=3096),
                       "e2-custom-2-4096")  # fmt: skip


@pytest.mark.parametrize("role", ["swarm", "rendezvous"])
@pytest.mark.parametrize("agents", [0, 1, 3000])
def test_a_reserve_that_leaves_no_guest_memory(role: str, agents: int) -> None:
    few = {"agents": agents} | ({"memory_activeConnections": 0} if role == "swarm" else {})
    # 97 % of 65,536 MiB, less 64.
    for reserve in (63_505, 65_535, 65_536, 99_999):
        [text] = vm_problems(spec(role, memory_reserveMb=reserve, **few))
        assert f"a reserve of {reserve} MiB leaves nothing of 65536 MiB" in text
    assert vm_problems(spec(role, memory_reserveMb=63_504, **few | {"agents": agents % 3000})) == []


def test_ports() -> None:
    config = {"machineTypes": {"huge": {"memoryGb": 100000}}}
    assert vm_problems(spec(agents=5535, basePort=60000), "huge", **config) == []
    [text] = vm_problems(spec(agents=5536, basePort=60000), "huge", **config)
    assert "end at 65536" in text
    assert "At most 5535 agents fit" in text


def test_local_ports() -> None:
    # 65536 - 1024 - 4096 - 128 = 60288 ports; four connections, a port and a quarter an agent.
    config = {"machineTypes": {"huge": {"memoryGb": 100000}}}
    assert vm_problems(spec(agents=11483), "huge", **config) == []
    [text] = vm_problems(spec(agents=11484), "huge", **config)
    assert "11484 agents take 60291 local ports" in text
    assert "At most 11483 agents fit on one VM" in text
    assert vm_problems(spec(agents=11484), "huge", localPorts=60291, **config) == []
    assert vm_problems(spec(agents=11484), "huge", localPortsPerAgent=5, **config) == []
    # The rendezvous' agents are elsewhere.
    assert vm_problems(spec("rendezvous", agents=50000)) == []


def test_a_machine_type_that_only_the_stack_file_knows_says_what_to_write_where() -> None:
    [text] = vm_problems(spec(), "m9-mega-4")
    assert "policy/settings.json" in text
    assert "make targets" in text
    assert '{"vm-fits": {"machineTypes": {"m9-mega-4": {"memoryGb": GB}}}}' in text
    [text] = vm_problems(spec("rendezvous"), "m9-mega-4")
    setting = json.loads(text[text.index("{") : text.rindex("}") + 1].replace("GB}", "976}"))
    assert setting.keys() == {"vm-fits", "fleet-fits"}
    assert vm_problems(spec("rendezvous"), "m9-mega-4", **setting["vm-fits"]) == []


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"memory_agentMb": 1.9}, "minAgentMb"),
        ({"memory_reserveMb": 255}, "minReserveMb"),
        ({"memory_connectionMb": 3}, "minConnectionMb"),
    ],
)
def test_planning_sizes_that_would_make_anything_fit(change: Any, setting: str) -> None:
    [text] = vm_problems(spec(**change))
    assert setting in text
    assert vm_problems(spec(**change), **{setting: 0}) == []


@pytest.mark.parametrize(
    "document",
    [
        None,
        "",
        "{",
        "[]",
        "null",
        7,
        {},
        "[" * 100000,
        "9" * 10000,
        spec(agents=-1),
        spec(agents=10**400),
        spec(memory_reserveMb=10**400),
        spec(agents=1.5),
        spec(agents=True),
        spec(agents="3000"),
        spec(basePort=None),
        spec(memory=None),
        spec(memory=[]),
        spec(memory_agentMb=None),
        spec(memory_agentMb="10"),
        spec(memory_agentMb=float("nan")),
        spec(memory_agentMb=float("inf")),
        spec(memory_connectionMb=-4),
        spec(memory_activeConnections=False),
    ],
)
def test_a_spec_that_is_none(document: Any) -> None:
    if document == {}:
        document = "{}"
    findings = list(fits.vm_fits(vm(document), fits.VmConfig()))
    assert findings
    assert all("CONTRACT.md" in finding.remedy for finding in findings)
    assert not any(finding.unjudged for finding in findings)


@pytest.mark.parametrize("role", ["", "swarn", "Swarm", None, 1])
def test_a_role_that_is_none(role: Any) -> None:
    props = vm_props(spec())
    props["metadata"]["pilot-role"] = role
    [finding] = fits.vm_fits(planned(INSTANCE, props), fits.VmConfig())
    assert "pilot-role" in finding.path


def test_a_role_that_is_not_the_specs() -> None:
    resource = planned(INSTANCE, vm_props(spec(), role="rendezvous"))
    findings = [str(one) for one in fits.vm_fits(resource, fits.VmConfig())]
    assert any("pilot-role" in text for text in findings)


@pytest.mark.parametrize("key", ["pilot-role", "pilot-spec"])
def test_unknown_role_or_spec_is_not_judged_yet(key: str) -> None:
    props = vm_props(spec())
    props["metadata"][key] = UNKNOWN
    [finding] = fits.vm_fits(planned(INSTANCE, props), fits.VmConfig())
    assert finding.unjudged
    assert key in finding.path


def test_unknown_machine_type_is_not_judged_yet() -> None:
    [finding] = fits.vm_fits(vm(spec(), UNKNOWN), fits.VmConfig())
    assert finding.unjudged


@pytest.mark.parametrize("machine", [None, "", "m9-mega-4", "e2-standard-100000", "custom-2"])
def test_machine_types_of_unknown_size_are_refused(machine: Any) -> None:
    [text] = vm_problems(spec(), machine)
    assert "machineType" in text


def test_vms_that_are_not_ours_are_left_alone() -> None:
    props = {"machineType": "f1-micro", "metadata": {"enable-oslogin": "TRUE"}}
    assert list(fits.vm_fits(planned(INSTANCE, props), fits.VmConfig())) == []
    assert list(fits.vm_fits(planned(INSTANCE, {}), fits.VmConfig())) == []
    assert list(fits.vm_fits(planned(INSTANCE, {"metadata": UNKNOWN}), fits.VmConfig())) == []


def fleet(*vms: Resource, **config: Any) -> list[tuple[str | None, str]]:
    found = fits.fleet_fits(vms, fits.FitsConfig(**config))
    return [(who.name if who else None, str(finding)) for who, finding in found]


def rendezvous(agents: int, machine: Any = "n2-standard-4", name: str = "rv") -> Resource:
    return vm(spec("rendezvous", agents=agents), machine, name)


def test_one_rendezvous_carries_all_agents() -> None:
    # 16 GB x 3,000 connections / 4 an agent
    swarm = [vm(spec(agents=6000), name="a"), vm(spec(agents=6000), name="b")]
    assert fleet(*swarm, rendezvous(12000)) == []
    [(culprit, text)] = fleet(*swarm, vm(spec(agents=1), name="c"), rendezvous(12001))
    assert culprit == "rv"
    assert "12001 agents hold 48004 connections" in text
    assert "At most 12000 agents fit" in text
    assert "at least 17 GB" in text


def test_fifty_thousand_agents() -> None:
    swarm = [vm(spec(agents=500), name=f"s{i}") for i in range(100)]
    assert fleet(*swarm, rendezvous(50000, "n2-highmem-16")) == []
    [(_, text)] = fleet(*swarm, rendezvous(50000, "n2-standard-4"))
    assert "at least 67 GB" in text


def test_the_rendezvous_expects_all_agents() -> None:
    [(culprit, text)] = fleet(vm(spec(agents=10)), rendezvous(9))
    assert culprit == "rv"
    assert "Set it to 10" in text


def test_a_fleet_has_one_rendezvous() -> None:
    [(_, text)] = fleet(vm(spec(agents=10)))
    assert "none" in text
    [(_, text)] = fleet(vm(spec(agents=10)), rendezvous(10), rendezvous(10, name="rv2"))
    assert "rv, rv2" in text
    assert fleet() == []


def test_an_unknown_vm_makes_the_sum_a_lower_bound() -> None:
    unknown = vm(UNKNOWN, name="later")
    assert fleet(unknown, vm(spec(agents=10)), rendezvous(5000)) == []
    assert fleet(unknown, vm(spec(agents=13000)), rendezvous(5000))
    props = vm_props(spec())
    props["metadata"]["pilot-role"] = UNKNOWN
    assert fleet(vm(spec(agents=10)), planned(INSTANCE, props)) == []
    blurred = planned(INSTANCE, {"machineType": "e2-small", "metadata": UNKNOWN})
    assert fleet(blurred, vm(spec(agents=10)), rendezvous(5000)) == []
    assert fleet(planned("gcp:x", {"metadata": UNKNOWN}), vm(spec(agents=10)), rendezvous(5000))


@pytest.mark.parametrize("machine", [UNKNOWN, None, "m9-mega-4"])
def test_a_rendezvous_of_unknown_size_is_left_to_the_rule_about_vms(machine: Any) -> None:
    assert fleet(vm(spec(agents=10)), rendezvous(10, machine)) == []
    assert list(fits.vm_fits(rendezvous(10, machine), fits.VmConfig()))


def test_fleet_settings() -> None:
    swarm = vm(spec(agents=6000))
    assert fleet(swarm, rendezvous(6000, "m9"), machineTypes={"m9": {"memoryGb": 1}})
    assert fleet(swarm, rendezvous(6000), connectionsPerAgent=9)
    assert fleet(swarm, rendezvous(6000), connectionsPerGb=1000)


@pytest.mark.parametrize(
    ("name", "gb"),
    [
        ("e2-standard-16", 64),
        ("e2-standard-8", 32),
        ("n2d-highcpu-128", 128),
        ("n2-standard-4", 16),
        ("n2-highmem-128", 864),
        ("n1-standard-1", 3.75),
        ("n1-highcpu-2", 1.8),
        ("c4-standard-2", 7),
        ("c4-highmem-4", 31),
        ("c4d-standard-8", 31),
        ("c4d-highcpu-2", 3),
        ("c3d-highcpu-360", 708),
        ("c3-standard-8-lssd", 32),
        ("e2-micro", 1),
        ("e2-medium", 4),
        ("f1-micro", 0.6),
        ("g1-small", 1.7),
        ("n2-custom-8-16384", 16),
        ("custom-4-8192", 8),
        ("e2-custom-2-1024", 1),
        ("e2-custom-micro-1536", 1.5),
        ("n2-custom-2-102400-ext", 100),
        ("zones/us-central1-a/machineTypes/e2-small", 2),
        ("https://www.googleapis.com/compute/v1/projects/p/zones/z/machineTypes/e2-small", 2),
        ("n2-standard-0", None),
        ("n2-standard-129", None),
        ("n2-ultramem-4", None),
        ("custom-4-8192-exta", None),
        ("xn2-standard-4", None),
    ],
)
def test_machine_types(name: str, gb: float | None) -> None:
    assert memory_gb(name, {}) == (gb if gb is None else pytest.approx(gb))


def test_configured_machine_types_go_first() -> None:
    known = {"m3-ultramem-32": {"memoryGb": 976}, "e2-small": {"memoryGb": 3}}
    assert memory_gb("m3-ultramem-32", known) == 976
    assert memory_gb("e2-small", known) == 3
