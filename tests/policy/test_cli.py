"""The policy pack through the real command line: exit code, policy, resource.

What the toolchain's provider has goes through that provider. What it lacks goes through the
stand-in of this folder, which accepts anything and says so.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.policy.planned import SCRIPT, nested, spec, vm_props

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
POLICY = HERE.parents[1] / "policy"
ANALYZER = POLICY / "analyzer"
NOTICE = "test-only stand-in for the gcp provider"
STACK = ("dev", "policy-scenario-dev")
# `    - [mandatory]  vm-fits  (gcp:compute:Instance: swarm-1)`
_LINE = re.compile(r"^ +- \[(\w+)\] +([\w-]+) +\([\w:/-]+: ([\w.-]+)\)$", re.MULTILINE)

Planned = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A command's result: exit code, output, and (policy, resource) pairs by level."""

    code: int
    output: str

    def of(self, level: str) -> set[tuple[str, str]]:
        lines = _LINE.findall(self.output)
        return {(policy, name) for found, policy, name in lines if found == level}

    @property
    def refused(self) -> set[tuple[str, str]]:
        return self.of("mandatory")

    @property
    def remarks(self) -> set[tuple[str, str]]:
        return self.of("advisory")

    def passed(self) -> None:
        """The pack ran, refused nothing, and the command succeeded."""
        assert self.code == 0, self.output
        assert self.refused == set(), self.output
        assert "✅ pilot-fleet" in self.output or self.remarks, self.output


Cli = Callable[..., Run]


@pytest.fixture
def cli(pulumi_env: dict[str, str], tmp_path: Path) -> Cli:
    """Runs a command over a list of resources, in a stack and a project of the test's own."""
    program, plugin, state = (tmp_path / name for name in ("program", "plugin", "state"))
    for folder in (program, plugin, state):
        folder.mkdir()
    shutil.copy(HERE / "program" / "__main__.py", program)
    provider = plugin / "pulumi-resource-gcp"
    command = shlex.join([sys.executable, str(HERE / "standin" / "provider.py")])
    provider.write_text(f'#!/bin/sh\nexec {command} "$@"\n', "utf-8")
    provider.chmod(0o755)
    # No credentials are needed to plan, but the provider asks for some that look like it.
    config = {"gcp:project": "policy-test", "gcp:zone": "us-central1-a", "gcp:accessToken": "none"}
    (program / f"Pulumi.{STACK[0]}.yaml").write_text(json.dumps({"config": config}), "utf-8")
    env = {
        **pulumi_env,
        "PULUMI_BACKEND_URL": state.as_uri(),
        "POLICY_SCENARIO": str(tmp_path / "scenario.json"),
    }

    def pulumi(*arguments: str) -> Run:
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive", "--color", "never"],
            cwd=program,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return Run(code=done.returncode, output=done.stdout)

    def run(
        resources: Iterable[Planned],
        *,
        standin: bool = False,
        command: tuple[str, ...] = ("preview",),
        settings: dict[str, Any] | None = None,
        pack: Path = ANALYZER,
        must_know: bool = False,
    ) -> Run:
        env["PILOT_REFUSE_UNKNOWN"] = "1" if must_know else "0"
        project = (HERE / "program" / "Pulumi.yaml").read_text("utf-8")
        if standin:
            project += f"plugins:\n  providers:\n    - {{name: gcp, path: {plugin}}}\n"
        (program / "Pulumi.yaml").write_text(project, "utf-8")
        (tmp_path / "scenario.json").write_text(json.dumps(list(resources)), "utf-8")
        if not (state / ".pulumi" / "stacks").exists():
            made = pulumi("stack", "init", STACK[0])
            assert made.code == 0, made.output
        arguments = [*command, "--policy-pack", str(pack)]
        if settings is not None:
            file = tmp_path / "settings.json"
            file.write_text(json.dumps(settings), "utf-8")
            arguments += ["--policy-pack-config", str(file)]
        found = pulumi(*arguments)
        assert (NOTICE in found.output) is standin or "failed to start" in found.output
        return found

    return run


def resource(kind: str, name: str, props: Any, **more: Any) -> Planned:
    token = kind if kind.startswith("gcp:") else f"gcp:compute/{kind[0].lower()}{kind[1:]}:{kind}"
    return {"type": token, "name": name, "props": props, **more}


def unknown(value: Any) -> Any:
    return {"$unknown": value}


def secret(value: Any) -> Any:
    return {"$secret": value}


def instance(name: str, **changes: Any) -> Planned:
    """A VM that is none of the fleet's, with everything that the provider asks for."""
    props: dict[str, Any] = {
        "name": name,
        "machineType": "e2-small",
        "zone": "us-central1-a",
        "bootDisk": {"initializeParams": {"image": "debian-cloud/debian-12"}},
        "networkInterfaces": [{"network": "default"}],
        "serviceAccount": {"email": "vm@p.iam.gserviceaccount.com", "scopes": ["cloud-platform"]},
    }
    return resource("Instance", name, props | changes)


def member(name: str, document: Any, machine_type: Any = "e2-standard-16", **more: Any) -> Planned:
    """A VM of the fleet."""
    vm = instance(name, **more)
    return vm | {"props": vm["props"] | vm_props(document, machine_type) | {"name": name} | more}


def blurred(name: str, document: Any) -> Planned:
    """A VM of the fleet with an unknown value beside its spec: the provider's planned outputs
    then say no more than that there is metadata."""
    vm = member(name, document)
    vm["props"]["metadata"]["x"] = unknown("y")
    return vm


def template(name: str, **changes: Any) -> Planned:
    props = {
        "name": name,
        "machineType": "e2-small",
        "disks": [{"sourceImage": "debian-cloud/debian-12", "boot": True}],
        "networkInterfaces": [{"network": "default"}],
        "serviceAccount": {"email": "vm@p.iam.gserviceaccount.com", "scopes": ["cloud-platform"]},
    }
    return resource("InstanceTemplate", name, props | changes)


def item(name: str, value: Any = SCRIPT, key: Any = "startup-script") -> Planned:
    return resource("ProjectMetadataItem", name, {"key": key, "value": value})


def firewall(name: str, ports: Any, sources: Any, **more: Any) -> Planned:
    props = {
        "name": name,
        "network": "default",
        "allows": [{"protocol": "tcp", "ports": ports}],
        "sourceRanges": sources,
    }
    props = {key: value for key, value in (props | more).items() if value is not None}
    return resource("Firewall", name, props)


def disk(name: str, **more: Any) -> Planned:
    return resource("Disk", name, {"name": name, "zone": "us-central1-a", "size": 10}, **more)


RENDEZVOUS = member("rv", spec("rendezvous", agents=3000), "n2-standard-4")
FLEET = [item("startup"), member("swarm-1", spec()), RENDEZVOUS]
IAP = ["35.235.240.0/20"]
GOOGLE = "https://storage.googleapis.com"
DEFAULT_ACCOUNT = "123-compute@developer.gserviceaccount.com"

# policy: (a scenario that passes, one in which every resource named `bad…` is refused by it and
# nothing else is refused by anything). Together: known, unknown, secret and absent values.
SCENARIOS: dict[str, tuple[list[Planned], list[Planned]]] = {
    "no-ghost-startup-script": (
        [
            item("startup"),
            instance("absent"),
            instance("known", metadata={"enable-oslogin": "TRUE"}),
            instance("secret", metadata=secret({"a": "b"}), description=unknown("x")),
            instance("unknown", metadata={"a": unknown("b")}, labels={"startup-script": "v3"}),
        ],
        [
            instance("good", metadata={"enable-oslogin": "TRUE"}),
            instance("bad-known", metadata={"startup-script": "echo"}),
            instance("bad-empty", metadata={"startup-script": ""}),
            instance("bad-unknown", metadata={"startup-script": unknown("echo")}),
            instance("bad-secret", metadata={"startup-script": secret("echo")}),
            instance("bad-secret-unknown", metadata={"user-data": secret(unknown("echo"))}),
            instance("bad-secret-map", metadata=secret({"startup-script-url": "gs://x"})),
            instance("bad-property", metadataStartupScript="echo"),
            instance("bad-property-unknown", metadataStartupScript=unknown("echo")),
            instance("bad-property-secret", metadataStartupScript=secret("echo")),
            instance("bad-case", metadata={"Startup-Script": "echo"}),
            instance("bad-blanks", metadata={" startup-script ": "echo"}),
            instance("bad-windows", metadata={"windows-startup-script-ps1": "echo"}),
            instance("bad-shutdown", metadata={"shutdown-script": "echo"}),
            instance("bad-sysprep", metadata={"sysprep-specialize-script-cmd": "echo"}),
            instance("bad-cloud-init", metadata={"cloud-init": "echo"}),
            template("bad-template", metadata={"user-data-encoding": "base64"}),
            template("bad-template-property", metadataStartupScript="echo"),
            item("bad-item-url", "gs://x", "startup-script-url"),
            item("bad-item-unknown", unknown("echo"), "windows-startup-script-cmd"),
            item("bad-item-secret", secret("echo"), "shutdown-script"),
        ],
    ),
    "guarded-project-script": (
        [item("startup", secret(SCRIPT)), item("login", "TRUE", "enable-oslogin")],
        [
            item("bad-unknown", unknown(SCRIPT)),
            resource("ProjectMetadata", "bad-metadata", {"metadata": {"a": "b"}}),
            resource("ProjectMetadata", "bad-metadata-secret", {"metadata": secret({"a": "b"})}),
        ],
    ),
    "vm-fits": (
        [
            item("startup"),
            member("known", spec(agents=10)),
            member("secret", secret(json.dumps(spec(agents=10)))),
            member("unknown", unknown(json.dumps(spec(agents=10)))),
            member("unknown-machine", spec(agents=10), unknown("e2-small")),
            instance("absent", machineType="f1-micro"),
            member("rv", spec("rendezvous", agents=40), "n2-standard-4"),
        ],
        [
            item("startup"),
            member("good", spec(agents=10)),
            member("bad-memory", spec(), "e2-custom-2-1024"),
            member("bad-ports", spec(agents=10, basePort=65530)),
            member("bad-floor", spec(agents=10, memory_agentMb=1)),
            member("bad-machine", spec(agents=10), "m9-mega-3"),
            member("bad-absent", None),
            member("bad-json", "{"),
            member("bad-secret", secret("no json")),
            member("rv", spec("rendezvous", agents=3040), "n2-standard-4"),
        ],
    ),
    "fleet-fits": (
        FLEET,
        [
            item("startup"),
            member("swarm-1", spec(agents=3001)),
            member("swarm-2", secret(json.dumps(spec(agents=3000)))),
            member("swarm-3", unknown(json.dumps(spec(agents=3000)))),
            # 16 GB would carry both known ones; 8 GB carry 6,000 agents.
            member("bad-rv", spec("rendezvous", agents=6001), "n2-custom-4-8192"),
        ],
    ),
    "zones-can-be-lost": (
        [
            *FLEET[:-1],
            member("swarm-2", spec(), zone="us-central1-f"),
            member("unknown", spec(agents=10), zone=unknown("us-central1-b")),
            member("secret", spec(agents=10), zone=secret("us-central1-c")),
            member("rv", spec("rendezvous", agents=6020), "n2-standard-4"),
        ],
        [
            *FLEET[:-1],
            member("bad-known", spec(agents=10), zone="us-east1-b"),
            member("bad-secret", spec(agents=10), zone=secret("europe-west1-b")),
            member("unknown", spec(agents=10), zone=unknown("us-east1-b")),
            member("rv", spec("rendezvous", agents=3030), "n2-standard-4"),
        ],
    ),
    "one-project-script": (
        [*FLEET, item("login", "TRUE", "enable-oslogin")],
        [
            item("startup"),
            member("good", spec(agents=10)),
            member("unknown", unknown(json.dumps(spec(agents=10)))),
            blurred("bad-blurred", spec(agents=10, script={"sha256": "1" * 64})),
            member("bad-known", spec(agents=10, script={"sha256": "0" * 64})),
            member("bad-absent", spec(agents=10, script={})),
            member("bad-secret", secret(json.dumps(spec(agents=10, script={"sha256": "f"})))),
            member("rv", spec("rendezvous", agents=50), "n2-standard-4"),
        ],
    ),
    "not-open-to-the-world": (
        [
            firewall("ssh", ["22"], IAP),
            firewall("secret", ["22"], secret(IAP)),
            firewall("unknown", ["22"], unknown(IAP)),
            firewall("web", ["443"], ["0.0.0.0/0"]),
            firewall("absent", ["22"], None, sourceTags=["pilot-swarm"]),
        ],
        [
            firewall("good", ["9000"], ["10.10.0.0/20"]),
            firewall("bad-ssh", ["22"], ["0.0.0.0/0"]),
            firewall("bad-registry", ["9000"], ["0.0.0.0/1", "128.0.0.0/1"]),
            firewall("bad-range", ["2999-3001"], ["::/0"]),
            firewall("bad-any-port", [], ["0.0.0.0/0"]),
            firewall("bad-secret", ["22"], secret(["0.0.0.0/0"])),
            firewall("bad-half-unknown", ["22"], ["0.0.0.0/0", unknown("10.0.0.0/8")]),
        ],
    ),
    "no-default-service-account": (
        [
            instance("absent", serviceAccount=None),
            instance("known"),
            instance("unknown", serviceAccount={"email": unknown("x"), "scopes": ["a"]}),
            instance("secret", serviceAccount={"email": secret("x@y"), "scopes": ["a"]}),
        ],
        [
            instance("good"),
            instance("bad-known", serviceAccount={"email": DEFAULT_ACCOUNT, "scopes": ["a"]}),
            instance("bad-absent", serviceAccount={"scopes": ["cloud-platform"]}),
            instance(
                "bad-secret", serviceAccount={"email": secret(DEFAULT_ACCOUNT), "scopes": ["a"]}
            ),
            template(
                "bad-app-engine",
                serviceAccount={"email": "p@appspot.gserviceaccount.com", "scopes": ["a"]},
            ),
        ],
    ),
    "endpoints-are-googles": (
        [
            item("startup"),
            member("known", spec(agents=10, endpoints={"storage": GOOGLE})),
            member("secret", secret(json.dumps(spec(agents=10, endpoints={"storage": GOOGLE})))),
            member("unknown", unknown(json.dumps(spec(agents=10)))),
            member("absent", spec(agents=10)),
            member("rv", spec("rendezvous", agents=40), "n2-standard-4"),
        ],
        [
            item("startup"),
            member("good", spec(agents=10, endpoints={"storage": GOOGLE})),
            member("bad-known", spec(agents=10, endpoints={"storage": "http://169.254.169.1"})),
            member("bad-secret", secret(json.dumps(spec(agents=10, endpoints={"storage": ""})))),
            blurred("bad-blurred", spec(agents=10, endpoints={"storage": f"{GOOGLE}@x.example"})),
            member("rv", spec("rendezvous", agents=40), "n2-standard-4"),
        ],
    ),
    "hardened-vm": (
        [
            *FLEET,
            instance("stranger"),
            member(
                "unknown",
                spec(agents=0),
                shieldedInstanceConfig={
                    "enableSecureBoot": unknown(True),
                    "enableVtpm": secret(True),
                    "enableIntegrityMonitoring": True,
                },
            ),
        ],
        [
            item("startup"),
            member("good", spec(agents=10)),
            member("bad-absent", spec(agents=10), shieldedInstanceConfig=None),
            member(
                "bad-secret",
                spec(agents=10),
                shieldedInstanceConfig=secret({"enableSecureBoot": False}),
            ),
            member(
                "bad-public",
                spec(agents=10),
                networkInterfaces=[{"network": "default", "accessConfigs": [{}]}],
            ),
            member("rv", spec("rendezvous", agents=40), "n2-standard-4"),
        ],
    ),
    "stateful-protected": (
        [disk("data", protect=True), instance("vm")],
        [
            disk("good", protect=True),
            disk("bad-disk"),
            resource("gcp:storage/bucket:Bucket", "bad-bucket", {"name": "b", "location": "US"}),
            resource("Address", "bad-address", {"name": unknown("a"), "region": "us-central1"}),
        ],
    ),
}


def bad(resources: list[Planned], policy: str) -> set[tuple[str, str]]:
    return {(policy, one["name"]) for one in resources if one["name"].startswith("bad")}


@pytest.mark.parametrize("policy", SCENARIOS)
def test_a_scenario_that_passes(cli: Cli, policy: str) -> None:
    passes, _ = SCENARIOS[policy]
    cli(passes).passed()


@pytest.mark.parametrize("policy", SCENARIOS)
def test_scenarios_that_are_refused(cli: Cli, policy: str) -> None:
    _, refused = SCENARIOS[policy]
    run = cli(refused)
    assert run.code != 0, run.output
    assert run.refused == bad(refused, policy), run.output


def test_more_than_one_script_and_none(cli: Cli) -> None:
    run = cli([item("a"), item("b"), *FLEET[1:]])
    assert run.code != 0
    assert run.refused == {("one-project-script", "a"), ("one-project-script", "b")}, run.output
    run = cli(FLEET[1:])
    assert run.code != 0
    assert run.refused == {("one-project-script", STACK[1])}, run.output


def test_a_fleet_without_a_rendezvous_and_with_two(cli: Cli) -> None:
    second = member("rv2", spec("rendezvous", agents=3000), "n2-standard-4")
    for resources in (FLEET[:2], [*FLEET, second]):
        run = cli(resources)
        assert run.code != 0
        assert run.refused == {("fleet-fits", STACK[1])}, run.output


def test_a_script_without_guard_and_one_that_is_too_long(cli: Cli) -> None:
    policy = "guarded-project-script"
    for script, says in (("#!/bin/sh\n", "guard"), (SCRIPT + "x" * 2**18, "too many")):
        run = cli([item("bad", script)])
        assert run.code != 0
        assert run.refused == {(policy, "bad")}, run.output
        assert says in run.output


def elsewhere(kind: str, name: str, path: str, value: Any = "echo") -> Planned:
    return resource(kind, name, nested(path, value))


KEY = "metadata.startup-script"
PAIR = {"key": "startup-script", "value": "echo"}
# Types that the toolchain's provider lacks, and one that no provider has yet.
SMUGGLED = [
    elsewhere("RegionInstanceTemplate", "bad-region-template", KEY),
    elsewhere("RegionInstanceTemplate", "bad-region-template-property", "metadataStartupScript"),
    elsewhere("InstanceFromTemplate", "bad-from-template", KEY),
    elsewhere("InstanceFromMachineImage", "bad-from-image", "metadataStartupScript"),
    elsewhere("InstanceGroupManager", "bad-group", f"allInstancesConfig.{KEY}"),
    elsewhere("RegionInstanceGroupManager", "bad-region-group", f"allInstancesConfig.{KEY}"),
    elsewhere("PerInstanceConfig", "bad-per-instance", f"preservedState.{KEY}"),
    elsewhere("RegionPerInstanceConfig", "bad-region-per-instance", f"preservedState.{KEY}"),
    elsewhere("InstanceSettings", "bad-settings", "metadata.items.startup-script"),
    elsewhere("InstanceSettings", "bad-settings-url", "metadata.items.startup-script-url"),
    elsewhere("InstanceSettings", "bad-unknown", f"{KEY}", unknown("echo")),
    elsewhere("InstanceSettings", "bad-secret", "metadata.items", secret({"user-data": "x"})),
    elsewhere("gcp:container/nodePool:NodePool", "bad-gke", f"nodeConfig.{KEY}"),
    elsewhere(
        "gcp:container/nodePool:NodePool",
        "bad-gke-init",
        "nodeConfig.linuxNodeConfig.customNodeInit.initScript.gcsUri",
    ),
    elsewhere(
        "gcp:dataproc/cluster:Cluster",
        "bad-dataproc",
        "clusterConfig.initializationActions[].script",
    ),
    elsewhere("gcp:workbench/instance:Instance", "bad-workbench", f"gceSetup.{KEY}"),
    elsewhere(
        "gcp:colab/runtimeTemplate:RuntimeTemplate",
        "bad-colab",
        "softwareConfig.postStartupScriptConfig.postStartupScript",
    ),
    elsewhere("gcp:tpu/v2Vm:V2Vm", "bad-tpu", "metadata.shutdown-script"),
    elsewhere(
        "gcp:workstations/workstationConfig:WorkstationConfig",
        "bad-workstation",
        "host.gceInstance.instanceMetadata.startup-script",
    ),
    elsewhere(
        "gcp:hypercomputecluster/cluster:Cluster",
        "bad-hypercompute",
        "orchestrator.slurm.nodeSets[].computeInstance.startupScript",
    ),
    elsewhere(
        "gcp:backupdisasterrecovery/restoreWorkload:RestoreWorkload",
        "bad-restore",
        "computeInstanceRestoreProperties.metadata.items[]",
        PAIR,
    ),
    elsewhere("gcp:compute/tomorrow:Tomorrow", "bad-tomorrow", "deep[].down[].it", PAIR),
]


def test_startup_scripts_in_types_that_the_provider_lacks(cli: Cli) -> None:
    account = {"serviceAccount": {"email": "vm@p.iam.gserviceaccount.com"}}
    resources = [one | {"props": one["props"] | account} for one in SMUGGLED]
    good = elsewhere("InstanceSettings", "good", "metadata.items.enable-oslogin", "TRUE")
    # Some of them need an account at another place, which is not tested here.
    kinds = sorted({one["type"] for one in SMUGGLED})
    settings = {"no-default-service-account": {"ignoreTypes": kinds}}
    run = cli([*resources, good], standin=True, settings=settings)
    assert run.code != 0
    assert run.refused == bad(SMUGGLED, "no-ghost-startup-script"), run.output
    assert len(run.refused) == 22


def test_types_that_the_provider_lacks_pass_without_one(cli: Cli) -> None:
    account = {"email": unknown("vm@p"), "scopes": ["a"]}
    props = {"metadata": {"pilot": "x", "other": unknown("y")}, "serviceAccount": account}
    good = {"metadata": {"items": {"enable-oslogin": secret("TRUE")}}}
    resources = [
        resource("RegionInstanceTemplate", "template", props),
        resource("InstanceFromTemplate", "vm", props),
        resource("InstanceGroupManager", "group", {"allInstancesConfig": {"metadata": {"a": "b"}}}),
        resource("InstanceSettings", "settings", good),
    ]
    run = cli(resources, standin=True)
    run.passed()
    assert run.remarks == set(), run.output


def test_services_that_state_no_account(cli: Cli) -> None:
    own = "vm@p.iam.gserviceaccount.com"
    tpu, pool = "gcp:tpu/v2Vm:V2Vm", "gcp:container/nodePool:NodePool"
    workbench = "gcp:workbench/instance:Instance"
    run = cli(
        [
            elsewhere(tpu, "good-tpu", "serviceAccount.email", own),
            elsewhere(pool, "good-pool", "nodeConfig.serviceAccount", secret(own)),
            elsewhere(workbench, "unknown", "gceSetup.serviceAccounts[].email", unknown(own)),
            elsewhere(tpu, "bad-tpu", "zone", "us-central1-a"),
            elsewhere(pool, "bad-pool", "nodeConfig.machineType", "e2-medium"),
            elsewhere(workbench, "bad-workbench", "gceSetup.serviceAccounts", []),
        ],
        standin=True,
    )
    assert run.code != 0
    assert run.refused == {
        ("no-default-service-account", name) for name in ("bad-tpu", "bad-pool", "bad-workbench")
    }, run.output


def test_new_firewall_rules(cli: Cli) -> None:
    def rule(kind: str, name: str, sources: Any, action: str = "allow") -> Planned:
        ssh = [{"ipProtocol": "tcp", "ports": ["22"]}]
        match = {"srcIpRanges": sources, "layer4Configs": ssh}
        return resource(kind, name, {"action": action, "direction": "INGRESS", "match": match})

    nested_bad = rule("NetworkFirewallPolicyRule", "x", ["0.0.0.0/0"])["props"]
    run = cli(
        [
            rule("NetworkFirewallPolicyRule", "good", IAP),
            rule("NetworkFirewallPolicyRule", "denied", ["0.0.0.0/0"], "deny"),
            rule("NetworkFirewallPolicyRule", "bad-network", ["0.0.0.0/0"]),
            rule("RegionNetworkFirewallPolicyRule", "bad-region", secret(["::/0"])),
            rule("FirewallPolicyRule", "bad-hierarchical", None),
            resource("NetworkFirewallPolicyWithRules", "bad-rules", {"rules": [nested_bad]}),
        ],
        standin=True,
    )
    assert run.code != 0
    assert run.refused == {
        ("not-open-to-the-world", name)
        for name in ("bad-network", "bad-region", "bad-hierarchical", "bad-rules")
    }, run.output


def later(name: str, metadata: Any) -> Planned:
    return resource("InstanceSettings", name, {"zone": "z", "metadata": unknown(metadata)})


def test_a_wholly_unknown_map_is_a_remark_in_preview_and_judged_in_the_update(cli: Cli) -> None:
    resources = [
        later("harmless", {"items": {"a": "b"}}),
        later("harmful", {"items": {"startup-script": "echo"}}),
    ]
    run = cli(resources, standin=True)
    assert run.code == 0, run.output
    assert run.refused == set()
    assert run.remarks == {("judged-in-preview", "harmless"), ("judged-in-preview", "harmful")}
    assert "no-ghost-startup-script could not judge metadata" in run.output

    run = cli(resources, standin=True, command=("up", "--yes"))
    assert run.code != 0
    assert run.refused == {("no-ghost-startup-script", "harmful")}, run.output
    assert "harmful created" not in run.output
    assert "harmful creating" not in run.output

    cli(resources[:1], standin=True, command=("up", "--yes")).passed()


SCRIPT_MAP = {"startup-script": "echo"}
# Every kind that can hold metadata as a whole that only another resource's creation tells.
UNKNOWN_KINDS = [
    instance("bad-instance", metadata=unknown(SCRIPT_MAP)),
    template("bad-template", metadata=unknown(SCRIPT_MAP)),
    elsewhere("RegionInstanceTemplate", "bad-region-template", "metadata", unknown(SCRIPT_MAP)),
    elsewhere("InstanceFromTemplate", "bad-from-template", "metadata", unknown(SCRIPT_MAP)),
    elsewhere("InstanceGroupManager", "bad-group", "allInstancesConfig.metadata", unknown({})),
    elsewhere("PerInstanceConfig", "bad-per-instance", "preservedState", unknown({})),
    elsewhere("InstanceSettings", "bad-settings", "metadata.items", unknown(SCRIPT_MAP)),
    elsewhere("gcp:container/nodePool:NodePool", "bad-gke", "nodeConfig.metadata", unknown({})),
    item("bad-item", "gs://x", unknown("startup-script-url")),
]


def test_make_up_refuses_what_is_unknown_before_anything_beside_it_is_made(cli: Cli) -> None:
    """A plain preview remarks it. `make up` (PILOT_REFUSE_UNKNOWN) does not go beyond its plan."""
    resources = [disk("beside", protect=True), *UNKNOWN_KINDS]
    names = {one["name"] for one in UNKNOWN_KINDS}
    settings = {"no-default-service-account": {"enforcementLevel": "disabled"}}
    run = cli(resources, standin=True, settings=settings)
    assert run.code == 0, run.output
    assert run.remarks == {("judged-in-preview", name) for name in names}, run.output
    up = ("up", "--yes")
    run = cli(resources, standin=True, settings=settings, command=up, must_know=True)
    assert run.code != 0
    assert run.refused == {("no-ghost-startup-script", name) for name in names}, run.output
    assert "`make up` refuses it before anything is made" in run.output
    assert not re.search(r"\b(creating|created)\b", run.output), run.output


def test_an_unknown_spec_is_a_remark_in_preview_and_judged_in_the_update(cli: Cli) -> None:
    def fleet(document: Any) -> list[Planned]:
        vm = member("swarm-1", unknown(json.dumps(document)))
        return [item("startup"), vm, RENDEZVOUS]

    run = cli(fleet(spec()), standin=True)
    assert run.code == 0, run.output
    assert run.remarks == {("judged-in-preview", "swarm-1")}, run.output
    cheat = spec(memory_agentMb=0)
    run = cli(fleet(cheat), standin=True, command=("up", "--yes"))
    assert run.code != 0
    assert run.refused == {("vm-fits", "swarm-1")}, run.output
    assert "swarm-1 created" not in run.output
    cli(fleet(spec()), standin=True, command=("up", "--yes")).passed()


def test_settings_change_the_verdict(cli: Cli) -> None:
    resources = [disk("data"), member("swarm-1", spec(), "m9-mega-1"), item("startup")]
    machine = {"machineTypes": {"m9-mega-1": {"memoryGb": 64}}}
    resources.append(RENDEZVOUS)
    settings = {
        "stateful-protected": {"exemptStacks": [STACK[0]]},
        "vm-fits": machine,
        "fleet-fits": machine,
    }
    assert cli(resources).refused == {("stateful-protected", "data"), ("vm-fits", "swarm-1")}
    cli(resources, settings=settings).passed()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"not-open-to-the-world": {"ports": ["ssh"]}}, "ports.0"),
        ({"not-open-to-the-world": {"widestV4": 64}}, "widestV4"),
        ({"vm-fits": {"machineTypes": {"x": {}}}}, "memoryGb is required"),
        ({"stateful-protected": {"exemptStacks": "lab"}}, "exemptStacks"),
    ],
)
def test_settings_that_are_none_are_refused(cli: Cli, settings: Any, says: str) -> None:
    run = cli([instance("vm")], settings=settings)
    assert run.code != 0
    [policy] = settings
    assert policy in run.output
    assert says in run.output
    assert "Traceback" not in run.output


def test_a_setting_that_does_not_exist_is_refused(cli: Cli) -> None:
    run = cli([instance("vm")], settings={"stateful-protected": {"exemptStack": ["lab"]}})
    assert run.code != 0
    assert "the policy stateful-protected has no setting exemptStack. It has: types," in run.output
    assert "Traceback" not in run.output


def test_the_pack_as_a_directory(cli: Cli, pulumi_env: dict[str, str]) -> None:
    host = shutil.which("pulumi-language-python", path=pulumi_env["PATH"])
    assert host is not None
    # Go writes the versions of a binary's modules into it; 3.79 is the toolchain's.
    if b"github.com/pulumi/pulumi/sdk/v3\tv3.79." in Path(host).read_bytes():
        pytest.skip("the toolchain's Python language host is too old to start a policy directory")
    run = cli([instance("bad", metadata={"startup-script": "echo"})], pack=POLICY)
    assert run.code != 0
    assert run.refused == {("no-ghost-startup-script", "bad")}, run.output
