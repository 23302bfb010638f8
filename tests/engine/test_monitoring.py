"""Monitoring and access carried out: the real engine, a real provider, and a local API."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.alerts import PANELS, alerts
from lab.cloud.server import Serving, serve
from tests.components.fleet import ROOT, changed
from tests.engine.project import Project

pytestmark = pytest.mark.engine

CLOUD = "project-1"


def lab_stack(key: str) -> dict[str, Any]:
    """What the lab's stack says of one key: what `make lab` makes is made here."""
    config = yaml.safe_load((ROOT / "Pulumi.lab.yaml").read_text())["config"]
    found = config[f"pilot-fleet:{key}"]
    assert isinstance(found, dict)
    return found


def call(cloud: Serving, path: str, body: dict[str, Any] | None = None) -> Any:
    request = urllib.request.Request(
        f"{cloud.url}/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": "Bearer anything", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def bindings(policy: dict[str, Any], member: str) -> set[tuple[str, str]]:
    return {
        (binding["role"], binding.get("condition", {}).get("title", ""))
        for binding in policy.get("bindings", [])
        if member in binding["members"]
    }


def test_monitoring_and_access(tmp_path: Path, pulumi_env: dict[str, str]) -> None:
    with serve(tmp_path / "cloud") as cloud:
        project = Project(folder=tmp_path / "fleet", environment=pulumi_env, extra=cloud.settings())
        monitoring, access = lab_stack("monitoring"), lab_stack("access")
        values = changed(
            serviceAccount=f"vms@{CLOUD}.iam.gserviceaccount.com",
            monitoring=monitoring,
            access=access,
            protect=False,
        )
        project.configure(values)
        made = project.up("--skip-preview", policies=False).no_traceback()
        assert made.code == 0, made.text

        # A second run, also one that has asked Google again, changes nothing.
        assert project.steps() == {}
        assert project.steps("--refresh") == {}

        held = call(cloud, f"v3/projects/{CLOUD}/alertPolicies")["alertPolicies"]
        wanted = alerts(agents=9500, online=9000 / 9500)
        assert {policy["displayName"] for policy in held} == {
            f"pilot-fleet test: {alert.summary}" for alert in wanted
        }
        (channel,) = call(cloud, f"v3/projects/{CLOUD}/notificationChannels")[
            "notificationChannels"
        ]
        assert channel["labels"] == {"email_address": monitoring["channels"][0]}
        assert all(policy["notificationChannels"] == [channel["name"]] for policy in held)
        (dashboard,) = call(cloud, f"v1/projects/{CLOUD}/dashboards")["dashboards"]
        assert len(dashboard["mosaicLayout"]["tiles"]) == len(PANELS)

        on_project = call(cloud, f"v1/projects/{CLOUD}:getIamPolicy", {})
        on_bucket = call(
            cloud, f"storage/v1/b/{CLOUD}-pilot-fleet/iam?optionsRequestedPolicyVersion=3"
        )
        (looks,), (orders,) = access["look"], access["order"]
        look = {
            ("roles/compute.viewer", ""),
            ("roles/monitoring.viewer", ""),
            ("roles/iap.tunnelResourceAccessor", "dashboard"),
        }
        assert bindings(on_project, looks) == look
        assert bindings(on_project, orders) == look | {
            ("roles/monitoring.snoozeEditor", ""),
            (access["role"], ""),
        }
        assert bindings(on_bucket, looks) == {("roles/storage.objectViewer", "")}
        assert bindings(on_bucket, orders) == {
            ("roles/storage.objectViewer", ""),
            ("roles/storage.objectUser", "orders"),
        }

        # A fleet that shrinks is told of in the alert, and nobody else's binding is lost.
        values["swarm"] = values["swarm"][:2]
        values["access"] = {"look": [looks]}
        project.configure(values)
        steps = project.steps()
        assert steps["pilot-fleet-FleetOnlineLow"] == "update"
        assert [name for name in steps if name.startswith("pilot-fleet-") and "-item" not in name]
        changed_to = project.up("--skip-preview", policies=False).no_traceback()
        assert changed_to.code == 0, changed_to.text
        assert bindings(call(cloud, f"v1/projects/{CLOUD}:getIamPolicy", {}), orders) == set()
        assert bindings(call(cloud, f"v1/projects/{CLOUD}:getIamPolicy", {}), looks) == look


def test_the_agent_is_declared_with_a_provider_that_has_it(
    tmp_path: Path, pulumi_env: dict[str, str]
) -> None:
    """The provider of 2022 does not: a plan says so, it does not leave the agent out."""
    project = Project(folder=tmp_path / "fleet", environment=pulumi_env)
    project.configure(changed(monitoring={"agent": True}))
    answer = project.preview(policies=False).no_traceback()
    assert "zoneVmExtensionPolicy" in answer.text or answer.code == 0, answer.text
    if answer.code == 0:
        assert "pilot-fleet-ops-agent" in answer.text, answer.text
