"""The pack as a process, asked in the engine's own protocol, without an engine.

This is where a run is told to be an update and still holds something unknown: the engine (3.259)
drops unknowns in an update, so its command line cannot show that they would be refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from google.protobuf import empty_pb2, struct_pb2
from pulumi.runtime.proto import analyzer_pb2, analyzer_pb2_grpc
from pulumi_policy import proxy

from lab.machines.processes import ending
from policy import (
    endpoints,
    exposure,
    fits,
    identity,
    instance_scripts,
    pack,
    project_script,
    protection,
    zones,
)
from tests.policy.planned import INSTANCE, spec, vm

POLICY = Path(__file__).parents[2] / "policy"
UNKNOWN = proxy.UNKNOWN_STRING_VALUE


STARTS = {
    "executable": [str(POLICY / "analyzer"), "127.0.0.1:1"],
    # As a language host starts a policy directory.
    "directory": [sys.executable, "-u", "-m", "pulumi.policy", "127.0.0.1:1", str(POLICY)],
}


@pytest.fixture(scope="module", params=STARTS)
def analyzer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A client of the pack, started in both ways that there are, from a foreign folder."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    process = subprocess.Popen(
        STARTS[request.param],
        cwd=tmp_path_factory.mktemp("program"),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ending(process):
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield analyzer_pb2_grpc.AnalyzerStub(channel)
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert (out, err) == ("", ""), "the pack is not quiet"


def told(analyzer: Any, *, preview: bool) -> None:
    """Send the pack the engine's first messages."""
    request = analyzer_pb2.AnalyzerStackConfigureRequest(stack="swarm", dry_run=preview)
    analyzer.ConfigureStack(request)


def diagnostics(analyzer: Any, props: dict[str, Any]) -> list[tuple[str, str]]:
    """(policy, level) of the pack's reports about a VM with these inputs."""
    properties = struct_pb2.Struct()
    properties.update(props)
    request = analyzer_pb2.AnalyzeRequest(
        type=INSTANCE,
        name="vm",
        urn=f"urn:pulumi:swarm::fleet::{INSTANCE}::vm",
        properties=properties,
        options=analyzer_pb2.AnalyzerResourceOptions(protect=True),
    )
    levels = analyzer_pb2.EnforcementLevel
    return [
        (found.policyName, levels.Name(found.enforcementLevel))
        for found in analyzer.Analyze(request).diagnostics
    ]


def test_an_unknown_map_is_a_remark_in_a_preview(analyzer: Any) -> None:
    told(analyzer, preview=True)
    props = {"metadata": UNKNOWN}
    assert diagnostics(analyzer, props) == [("judged-in-preview", "ADVISORY")]


def test_an_unknown_map_is_refused_in_an_update(analyzer: Any) -> None:
    told(analyzer, preview=False)
    props = {"metadata": UNKNOWN}
    assert diagnostics(analyzer, props) == [("no-ghost-startup-script", "MANDATORY")]


@pytest.mark.parametrize("preview", [True, False])
def test_an_unknown_value_under_the_key_is_refused_in_both(analyzer: Any, preview: bool) -> None:
    told(analyzer, preview=preview)
    props = {"metadata": {"startup-script": UNKNOWN}}
    assert diagnostics(analyzer, props) == [("no-ghost-startup-script", "MANDATORY")]


def test_an_unknown_spec_is_a_remark_in_a_preview_and_refused_in_an_update(analyzer: Any) -> None:
    metadata = {"pilot-role": "swarm", "pilot-spec": UNKNOWN, "enable-oslogin": "TRUE"}
    props = {"metadata": metadata, "shieldedInstanceConfig": UNKNOWN}
    told(analyzer, preview=True)
    assert diagnostics(analyzer, props) == [("judged-in-preview", "ADVISORY")]
    told(analyzer, preview=False)
    assert diagnostics(analyzer, props) == [("vm-fits", "MANDATORY")]


def test_remarks_do_not_reach_the_next_resource(analyzer: Any) -> None:
    told(analyzer, preview=True)
    for _ in range(8):
        assert len(diagnostics(analyzer, {"metadata": UNKNOWN})) == 1
        assert diagnostics(analyzer, {}) == []


def test_the_packs_description_of_itself(analyzer: Any) -> None:
    info = analyzer.GetAnalyzerInfo(empty_pb2.Empty())
    levels = analyzer_pb2.EnforcementLevel
    told_levels = {one.name: levels.Name(one.enforcementLevel) for one in info.policies}
    advisory = {name for name, level in told_levels.items() if level == "ADVISORY"}
    assert advisory == {"judged-in-preview"}
    assert set(told_levels) == {policy.name for policy in pack.policies(pack.Mode())}
    assert len(info.policies) == 12


def test_an_engine_that_does_not_tell_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PULUMI_DRY_RUN", raising=False)
    assert not pack.Mode().refuses_unknown
    monkeypatch.setenv("PULUMI_DRY_RUN", "false")
    assert pack.Mode().refuses_unknown
    monkeypatch.setenv("PULUMI_DRY_RUN", "true")
    assert not pack.Mode().refuses_unknown
    monkeypatch.setenv("PILOT_REFUSE_UNKNOWN", "1")
    assert pack.Mode().refuses_unknown


def test_a_stack_policy_judges_what_the_program_declares() -> None:
    """With a refresh the engine also shows it resources that are about to be deleted."""
    here, gone = (vm(spec(), name=name) for name in ("here", "gone"))
    inputs = pack.Inputs()
    assert inputs.declared([here, gone]) == [here, gone]
    inputs.note(here)
    blurred = dataclasses.replace(here, props={})
    assert inputs.declared([blurred, gone]) == [here]


def test_settings_that_do_not_exist_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"vm-fits has no setting minAgent\. It has: machineTypes"):
        pack.configured("vm-fits", fits.VmConfig, {"minAgent": 1})
    with pytest.raises(ValueError, match="It has: none"):
        pack.configured("one-project-script", pack.NoConfig, {"x": 1})


def test_every_setting_is_in_its_schema_and_in_the_readme(analyzer: Any) -> None:
    info = analyzer.GetAnalyzerInfo(empty_pb2.Empty())
    readme = (POLICY / "README.md").read_text("utf-8")
    seen = set()
    for policy in info.policies:
        assert f"| `{policy.name}`" in readme
        for setting in policy.configSchema.properties:
            assert f"`{setting}`" in readme, setting
            seen.add((policy.name, setting))
    kinds = {
        "no-ghost-startup-script": instance_scripts.GhostsConfig,
        "guarded-project-script": project_script.ProjectScriptConfig,
        "vm-fits": fits.VmConfig,
        "fleet-fits": fits.FitsConfig,
        "zones-can-be-lost": zones.ZonesConfig,
        "not-open-to-the-world": exposure.ExposureConfig,
        "no-default-service-account": identity.AccountConfig,
        "endpoints-are-googles": endpoints.EndpointsConfig,
        "hardened-vm": identity.HardeningConfig,
        "stateful-protected": protection.ProtectionConfig,
    }
    assert seen == {
        (policy, field.name) for policy, kind in kinds.items() for field in dataclasses.fields(kind)
    }


def test_the_readmes_settings_are_settings() -> None:
    readme = (POLICY / "README.md").read_text("utf-8")
    [block] = re.findall(r"```json\n(.*?)```", readme, re.DOTALL)
    settings = json.loads(block)
    names = {policy.name for policy in pack.policies(pack.Mode())}
    assert set(settings) <= names
    pack.configured("vm-fits", fits.VmConfig, settings["vm-fits"])
    pack.configured("zones-can-be-lost", zones.ZonesConfig, settings["zones-can-be-lost"])
    pack.configured(
        "stateful-protected", protection.ProtectionConfig, settings["stateful-protected"]
    )
