"""The program in the real engine, with a real provider: plans, and refusals in words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.config_checks import MAX_CONFIGURATION_BYTES
from tests.components.fleet import ROOT, SEED_FILE, changed, seed
from tests.engine.project import Project

pytestmark = pytest.mark.engine


@pytest.fixture
def project(tmp_path: Path, pulumi_env: dict[str, str]) -> Project:
    return Project(folder=tmp_path / "fleet", environment=pulumi_env)


def hundred(rendezvous: str) -> dict[str, object]:
    """100 swarm VMs of 500 agents each."""
    return changed(
        rendezvous={"name": "pilot-rendezvous", "machineType": rendezvous},
        swarm=[
            {"name": f"swarm-{n}", "machineType": "e2-standard-8", "agents": 500}
            for n in range(1, 101)
        ],
    )


def test_the_seeds_fleet_is_planned_and_passes_the_policies(project: Project) -> None:
    project.configure(seed())
    answer = project.preview().no_traceback()
    assert answer.code == 0, answer.text
    for vm in (
        "pilot-rendezvous: n2-standard-4, 4 vCPU, 16 GB: 9,500 agents",
        "swarm-1         : e2-standard-16, 16 vCPU, 64 GB: 3,000 agents, headroom 50%",
        "swarm-2         : n2d-highcpu-128, 128 vCPU, 128 GB: 5,000 agents, headroom 56%",
        "swarm-3         : e2-standard-8, 8 vCPU, 32 GB: 1,500 agents, headroom 48%",
    ):
        name, _, rest = vm.partition(": ")
        assert any(
            line.strip().startswith(name.strip()) and rest in line
            for line in answer.text.splitlines()
        ), answer.text
    assert "Policies:" in answer.text
    assert "error" not in answer.text.lower(), answer.text


def test_a_hundred_vms_with_fifty_thousand_agents(project: Project) -> None:
    project.configure(hundred("n2-highmem-16"))
    answer = project.preview().no_traceback()
    assert answer.code == 0, answer.text
    assert "agents         : 50000" in answer.text
    project.configure(hundred("n2-standard-4"))
    refused = project.preview().no_traceback()
    assert refused.code != 0
    assert "carries 12,000 agents, the fleet has 50,000" in refused.text
    assert "at least 67 GB" in refused.text


def test_the_fleet_of_fifty_thousand_is_planned_and_passes_the_policies(project: Project) -> None:
    project.write((ROOT / "Pulumi.fifty.yaml").read_text())
    answer = project.preview().no_traceback()
    assert answer.code == 0, answer.text
    assert 'us-central1-c: "3 VMs, lost with it: 16,700 of 50,000 agents (33%)"' in answer.text
    assert "Policies:" in answer.text


def test_more_configuration_than_fits_is_refused_well_below_where_it_breaks(
    project: Project,
) -> None:
    """What passes the check starts the program; what does not is told why, by either."""
    values = seed()
    values["swarm"][0]["env"] = {"A": "x" * (MAX_CONFIGURATION_BYTES - 2_000)}
    project.configure(values)
    assert project.preview().no_traceback().code == 0
    reason = "Pulumi passes all of it to the program in one environment variable"
    # The last goes beyond what the engine could start the program with.
    for length, starts in ((MAX_CONFIGURATION_BYTES, True), (120_000, True), (140_000, False)):
        values["swarm"][0]["env"] = {"A": "x" * length}
        project.configure(values)
        check = subprocess.run(
            [sys.executable, "-m", "components.stack_file", project.stack_file.name],
            cwd=project.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert check.returncode == 1
        assert "pilot-fleet:swarm: takes " in check.stderr
        assert reason in check.stderr
        answer = project.preview().no_traceback()
        assert answer.code != 0
        assert (reason if starts else "argument list too long") in answer.text


def test_every_error_of_the_configuration_in_one_run(project: Project) -> None:
    project.configure(
        changed(
            zone="mars",
            colour="red",
            basePort=8000,
            subnetCidr="10.0.0.1/8",
            registryRanges=["everyone"],
            swarm=[
                {"name": "Upper", "machineType": "e2-standard-8", "agents": -1},
                {"name": "b", "machineType": "n9-standard-8", "agents": 1},
                {"name": "b", "machineType": "e2-standard-8", "agents": 10**30},
                {"name": "c", "machineType": "e2-standard-8", "agents": 9_999},
            ],
        )
    )
    answer = project.preview().no_traceback()
    assert answer.code != 0
    for path in (
        "pilot-fleet:zone:",
        "pilot-fleet:colour: unknown key",
        "pilot-fleet:basePort: the agents' UDP ports",
        "pilot-fleet:subnetCidr:",
        "pilot-fleet:registryRanges[0]:",
        "pilot-fleet:swarm[0].name:",
        "pilot-fleet:swarm[0].agents: -1 is out of range",
        "pilot-fleet:swarm[1].machineType:",
        "pilot-fleet:swarm[2].name: 'b' is also the name",
        "pilot-fleet:swarm[2].agents:",
        "pilot-fleet:swarm[3].agents: 9,999 agents do not fit on e2-standard-8: memory allows",
    ):
        assert path in answer.text, answer.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("config:", "config: [", "invalid YAML file"),
        (
            "us-central1-a",
            "us-central1-a\n  pilot-fleet:agentMb: ten",
            "configuration key 'agentMb' must be of type 'integer'",
        ),
        ("agents: 3000}", "agents: 3000, agents: 4}", "already defined"),
        (
            "pilot-fleet:swarm:",
            "pilot-fleet:swarm: x\n  other:swarm:",
            "configuration key 'swarm' must be of type 'array<object>'",
        ),
    ],
    ids=["no YAML", "wrong type", "twice", "text for a list"],
)
def test_text_that_pulumi_itself_refuses(
    project: Project, old: str, new: str, message: str
) -> None:
    text = SEED_FILE.read_text()
    assert old in text
    project.write(text.replace(old, new))
    answer = project.preview().no_traceback()
    assert answer.code != 0
    assert message in answer.text


GHOST = """
import pulumi_gcp as gcp
gcp.compute.Instance(
    "ghost",
    name="ghost",
    zone="us-central1-a",
    machine_type="e2-micro",
    boot_disk=gcp.compute.InstanceBootDiskArgs(
        initialize_params=gcp.compute.InstanceBootDiskInitializeParamsArgs(image="debian-cloud/debian-12")
    ),
    network_interfaces=[gcp.compute.InstanceNetworkInterfaceArgs(network="default")],
    service_account=gcp.compute.InstanceServiceAccountArgs(email="x@y.example", scopes=["a"]),
    metadata=METADATA,
)
"""
SECRETS = {
    "a secret value": '{"startup-script": pulumi.Output.secret("echo hush")}',
    "a secret map": 'pulumi.Output.secret({"startup-script": "echo hush"})',
}


@pytest.mark.parametrize("metadata", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("policies", [False, True], ids=["plain", "with policies"])
def test_a_ghost_script_is_refused_by_the_program_itself(
    project: Project, policies: bool, metadata: str
) -> None:
    project.configure(seed())
    project.append(GHOST.replace("METADATA", metadata))
    answer = project.preview(policies=policies).no_traceback()
    assert answer.code != 0
    assert "'ghost' carries a script of its own: metadata.startup-script runs at" in answer.text
    assert "name it in pilot-fleet:allowedScripts" in answer.text
    assert "hush" not in answer.text


def test_a_site_allows_the_script_of_a_vm_that_is_not_the_fleets(project: Project) -> None:
    """Named for the program and for the policies; a VM that says it is the fleet's is refused."""
    project.configure(changed(allowedScripts=["ghost"]))
    main = project.folder / "__main__.py"
    text = main.read_text()
    project.append(GHOST.replace("METADATA", '{"startup-script": "echo hush"}'))
    plain = project.preview(policies=False).no_traceback()
    assert plain.code == 0, plain.text
    refused = project.preview().no_traceback()
    assert refused.code != 0
    assert "no-ghost-startup-script" in refused.text
    settings = project.folder / "policy" / "settings.json"
    settings.write_text('{"no-ghost-startup-script": {"allowed": ["ghost"]}}')
    allowed = project.preview().no_traceback()
    assert allowed.code == 0, allowed.text
    main.write_text(text)
    both = '{"startup-script": "echo hush", "pilot-role": "swarm"}'
    project.append(GHOST.replace("METADATA", both))
    fleets = project.preview(policies=False).no_traceback()
    assert fleets.code != 0
    assert "'ghost' carries a script of its own" in fleets.text
    assert "allowedScripts" not in fleets.text


def test_what_is_declared_while_the_program_is_imported_is_refused_too(project: Project) -> None:
    """By a module of the site's, before the configuration is read."""
    project.configure(seed())
    (project.folder / "site_own.py").write_text(
        GHOST.replace("METADATA", '{"startup-script": "echo hush"}')
    )
    main = project.folder / "__main__.py"
    first = "from components.config_parse import"
    main.write_text(main.read_text().replace(first, f"import site_own\n{first}", 1))
    answer = project.preview(policies=False).no_traceback()
    assert answer.code != 0
    assert "'ghost' carries a script of its own" in answer.text


def test_a_script_that_a_later_transform_puts_in_is_the_policies_to_refuse(
    project: Project,
) -> None:
    """The program's own transform has looked by then (policy/README.md)."""
    project.configure(seed())
    later = """
async def haunt(args):
    if args.name == "ghost":
        args.props["metadata"] = {"startup-script": "echo hush"}
    return pulumi.ResourceTransformResult(props=args.props, opts=args.opts)
pulumi.runtime.register_resource_transform(haunt)
"""
    project.append(later + GHOST.replace("METADATA", '{"a": "b"}'))
    answer = project.preview().no_traceback()
    assert answer.code != 0
    assert "no-ghost-startup-script" in answer.text


def test_labels_and_taints_are_no_scripts(project: Project) -> None:
    project.configure(seed())
    project.append(
        """
import pulumi_gcp as gcp
protected = pulumi.ResourceOptions(protect=True)
gcp.storage.Bucket("b", name="b-of-ours", location="US", labels={"startup-script": "v3"},
                   opts=protected)
gcp.storage.BucketObject("o", bucket="b-of-ours", name="o", content="x",
                         metadata={"user-data": "x"})
gcp.secretmanager.Secret("s", secret_id="s", labels={"user-data": "yes"},
                         replication={"user_managed": {"replicas": [{"location": "us-east1"}]}})
"""
    )
    answer = project.preview().no_traceback()
    assert answer.code == 0, answer.text


def test_a_binary_that_is_not_built_is_a_warning_in_a_preview(project: Project) -> None:
    project.configure(seed())
    (project.folder / "artifacts" / "1.18.0" / "pilot-rendezvous").unlink()
    preview = project.preview().no_traceback()
    assert preview.code == 0, preview.text
    assert "warning: not built: artifacts/1.18.0/pilot-rendezvous" in preview.text
    up = project.up("--skip-preview").no_traceback()
    assert up.code != 0
    assert "error: not built: artifacts/1.18.0/pilot-rendezvous" in up.text
