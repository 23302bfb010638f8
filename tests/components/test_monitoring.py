"""Monitoring as it is declared, and the retry while a metric is new."""

from __future__ import annotations

import json
from typing import Any, cast

import pulumi
import pytest
import yaml

from components.monitoring import RETRY_FOR_SECONDS, RetryUnknownMetric, is_unknown_metric
from tests.components.fleet import Recorder, changed, run_program, seed
from tests.conftest import run_async

POLICY = "monitoring/alertPolicy:AlertPolicy"
CHANNEL = "monitoring/notificationChannel:NotificationChannel"
EXTENSION = "compute/zoneVmExtensionPolicy:ZoneVmExtensionPolicy"
EXISTING = "projects/project-1/notificationChannels/12"
CHANNELS = ["ops@example.com", "projects/project-1/topics/alerts", EXISTING]


@pytest.fixture(scope="module")
def fleet() -> Recorder:
    return run_program(changed(monitoring={"enabled": True, "agent": True, "channels": CHANNELS}))


def test_nothing_is_declared_where_it_is_not_asked_for() -> None:
    plain = run_program(seed())
    for type_ in (POLICY, CHANNEL, EXTENSION, "monitoring/dashboard:Dashboard"):
        assert not plain.of(type_)
    # The agent alone: metrics first, alerts when there are some.
    agent = run_program(changed(monitoring={"agent": True}))
    assert agent.of(EXTENSION)
    assert not agent.of(POLICY)


def test_the_required_alerts_are_there(fleet: Recorder) -> None:
    names = {name.rsplit("-", 1)[1] for name in fleet.of(POLICY)}
    assert names >= {
        "FleetOnlineLow",
        "AgentsFailed",
        "MemoryLeak",
        "MemoryLow",
        "VmSilent",
        "RegistryDown",
        "RollHalted",
        "GhostScript",
    }
    for policy in fleet.of(POLICY).values():
        assert policy["displayName"].startswith("pilot-fleet test: ")
        # `ops` finds them by it.
        assert policy["userLabels"]["pilot-fleet"] == "test"
        assert policy["userLabels"]["severity"] in {"page", "ticket"}
        assert len(policy["notificationChannels"]) == len(CHANNELS)
        assert EXISTING in policy["notificationChannels"]


def condition(fleet: Recorder, name: str, index: int = 0) -> dict[str, Any]:
    found = fleet.of(POLICY)[f"pilot-fleet-{name}"]["conditions"][index]
    return cast("dict[str, Any]", found.get("conditionThreshold") or found["conditionAbsent"])


def test_the_number_below_which_too_few_are_online(fleet: Recorder) -> None:
    """Upstream's (docs/FACTS.md): 9,000 of 9,500. It follows the fleet."""
    online = condition(fleet, "FleetOnlineLow")
    assert (online["comparison"], online["thresholdValue"]) == ("COMPARISON_LT", 9000)
    assert "prometheus.googleapis.com/pilot_registry_online/gauge" in online["filter"]
    half = run_program(
        changed(swarm=seed()["swarm"][:1], monitoring={"enabled": True, "online": 0.5})
    )
    assert condition(half, "FleetOnlineLow")["thresholdValue"] == 1500
    assert condition(half, "AgentsMissing")["thresholdValue"] == 0.5


def test_a_share_is_of_the_same_vm(fleet: Recorder) -> None:
    memory = condition(fleet, "MemoryLow")
    assert memory["thresholdValue"] == 0.2
    assert "pilot_memory_available_bytes" in memory["filter"]
    assert "pilot_memory_total_bytes" in memory["denominatorFilter"]
    for aggregations in (memory["aggregations"], memory["denominatorAggregations"]):
        assert aggregations[0]["groupByFields"] == ["metric.label.vm"]


def test_a_vm_can_be_silent_in_two_ways(fleet: Recorder) -> None:
    assert "pilot_node_start_time_seconds" in condition(fleet, "VmSilent")["filter"]
    machine = condition(fleet, "VmSilent", 1)
    # Of the hypervisor's: it is there where no agent is.
    assert "compute.googleapis.com/instance/uptime_total" in machine["filter"]
    assert 'metadata.user_labels."pilot-fleet"="test"' in machine["filter"]


def test_channels(fleet: Recorder) -> None:
    made = {(c["type"], *c["labels"].values()) for c in fleet.of(CHANNEL).values()}
    assert made == {
        ("email", "ops@example.com"),
        ("pubsub", "projects/project-1/topics/alerts"),
    }


def test_the_agent_goes_to_the_fleets_vms_and_no_others(fleet: Recorder) -> None:
    (extension,) = fleet.of(EXTENSION).values()
    (selector,) = extension["instanceSelectors"]
    assert selector["labelSelector"]["inclusionLabels"] == {"pilot-fleet": "test"}
    (policy,) = extension["extensionPolicies"]
    assert policy["extensionName"] == "ops-agent"
    assert "metrics" in yaml.safe_load(policy["stringConfig"])
    vms = fleet.of("compute/instance:Instance").values()
    assert {vm["labels"]["pilot-fleet"] for vm in vms} == {"test"}


def test_the_dashboard_is_a_document(fleet: Recorder) -> None:
    (dashboard,) = fleet.of("monitoring/dashboard:Dashboard").values()
    tiles = json.loads(dashboard["dashboardJson"])["mosaicLayout"]["tiles"]
    legends = {
        data_set["legendTemplate"]
        for tile in tiles
        for data_set in tile["widget"]["xyChart"]["dataSets"]
    }
    assert "${metric.labels.vm}" in legends
    assert not [legend for legend in legends if "{{" in legend]


NEW = (
    "googleapi: Error 404: Cannot find metric(s) that match type = "
    '"prometheus.googleapis.com/pilot_ghosts/gauge". If a metric was created recently, it could '
    "take up to 10 minutes to become available. Please try again soon."
)


def failure(*errors: str) -> pulumi.ErrorHookArgs:
    return pulumi.ErrorHookArgs(
        urn="urn", id="", name="alert", type="t", failed_operation="create", errors=list(errors)
    )


def test_an_alert_on_a_new_metric_is_tried_again_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    said: list[str] = []
    told: list[str] = []
    monkeypatch.setattr(pulumi.log, "info", said.append)
    monkeypatch.setattr(pulumi.log, "error", told.append)

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    retry = RetryUnknownMetric(clock=lambda: now[0], sleep=sleep)

    async def tries() -> int:
        count = 0
        while await retry(failure(NEW)):
            count += 1
        return count

    assert run_async(tries()) > 1
    assert now[0] == RETRY_FOR_SECONDS
    assert len(said) == 1
    assert "monitoring.agent" in str(told)
    # The limit is that of all alerts together: the next does not wait as long again.
    assert run_async(retry(failure(NEW))) is False
    assert now[0] == RETRY_FOR_SECONDS


@pytest.mark.parametrize("error", ["googleapi: Error 403: Permission denied", ""])
def test_other_failures_are_final(error: str) -> None:
    async def sleep(_: float) -> None:
        raise AssertionError("there is nothing to wait for")

    # An earlier failure, in the place after, counts no more.
    assert run_async(RetryUnknownMetric(sleep=sleep)(failure(error, NEW))) is False
    assert not is_unknown_metric(error)
