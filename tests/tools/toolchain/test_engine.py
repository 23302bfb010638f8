"""The real engine, and our provider against the SDK that programs are written with."""

from __future__ import annotations

import json
import subprocess
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi._types import input_type_py_to_pulumi_names, input_type_types, is_input_type

from tools.toolchain import build, versions

pytestmark = pytest.mark.engine


def run(
    command: Sequence[str], environ: Mapping[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_is_a_pulumi_that_runs(pulumi_env: dict[str, str], tmp_path: Path) -> None:
    answer = run(["pulumi", "version"], pulumi_env, tmp_path)
    assert answer.returncode == 0, answer.stderr
    version = versions.version_of(answer.stdout)
    assert version is not None
    assert version >= versions.MINIMUM
    assert answer.stderr == ""


def built_provider(environ: Mapping[str, str]) -> Path | None:
    """The provider that was built from source, where that is the one in use.

    An installed Pulumi may have its plugins in a PULUMI_HOME of its own, under the same name.
    """
    home = build.locate(build.cache_root(environ)).home()
    if environ.get("PULUMI_HOME") != str(home):
        return None
    return home / Path(versions.PROVIDER.output).relative_to("home")


def test_an_installed_provider_is_not_taken_for_the_built_one(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert built_provider(environ) is None
    installed = tmp_path / "pulumi"
    plugin = installed / Path(versions.PROVIDER.output).relative_to("home")
    plugin.parent.mkdir(parents=True)
    plugin.touch()
    assert built_provider({**environ, "PULUMI_HOME": str(installed)}) is None
    home = build.locate(build.cache_root(environ)).home()
    built = built_provider({**environ, "PULUMI_HOME": str(home)})
    assert built == home / plugin.relative_to(installed)


@pytest.fixture(scope="module")
def accepted(pulumi_env: dict[str, str]) -> dict[str, Any]:
    """What our provider accepts, by token: an object maps names to values, a list holds its
    element, a leaf is its kind."""
    plugin = built_provider(pulumi_env)
    if plugin is None:
        pytest.skip("an installed Pulumi is in use: it brings the real provider")
    names: dict[str, Any] = json.loads(
        subprocess.run([plugin, "--names"], capture_output=True, text=True, check=True).stdout
    )
    return names


def bare(kind: Any) -> Any:
    """The type inside Optional, Input and Awaitable; of several, the class that names fields."""
    while typing.get_origin(kind) is typing.Union:
        inside = [
            option
            for option in typing.get_args(kind)
            if option is not type(None)
            and typing.get_origin(option) is not pulumi.Output
            and "Awaitable" not in str(typing.get_origin(option))
        ]
        fields = [o for o in inside if isinstance(o, type) and is_input_type(o)]
        kind = (fields or inside)[0]
    return kind


def shape(kind: Any) -> Any:
    """A type of the SDK in the terms of `accepted`."""
    kind = bare(kind)
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and is_input_type(kind):
        assert input_type_py_to_pulumi_names(kind)
        return {name: shape(inner) for name, inner in input_type_types(kind).items()}
    if origin in (list, Sequence):
        return [shape(typing.get_args(kind)[0])]
    if origin in (dict, Mapping):
        return "map"
    if isinstance(kind, type) and issubclass(kind, pulumi.Asset | pulumi.Archive):
        return "asset"
    return "leaf"


def differences(path: str, sdk: Any, provider: Any) -> list[str]:
    """Where a property that both have is not of one shape; newer ones are no difference."""
    if isinstance(sdk, dict) and isinstance(provider, dict):
        return [
            line
            for name in sdk.keys() & provider.keys()
            for line in differences(f"{path}.{name}", sdk[name], provider[name])
        ]
    if isinstance(sdk, list) and isinstance(provider, list):
        return differences(f"{path}[]", sdk[0], provider[0])
    return [] if sdk == provider else [f"{path}: the SDK has {sdk!r}, the provider {provider!r}"]


def test_tokens_names_and_shapes_are_those_of_the_sdk(accepted: dict[str, Any]) -> None:
    assert len(accepted) > 40
    found: list[str] = []
    for token, provider in accepted.items():
        if token == "pulumi:providers:gcp":
            arguments = import_module("pulumi_gcp.provider").ProviderArgs
        else:
            _, module, name = token.split(":")
            package = import_module(f"pulumi_gcp.{module.split('/')[0]}")
            assert getattr(package, name).pulumi_type == token
            arguments = getattr(package, f"{name}Args")
        found += differences(token, shape(arguments), provider)
    assert found == []


# The properties that the fleet is declared with, spelled as the SDK spells them.
USED = {
    "gcp:compute/instance:Instance": "machineType zone metadata labels tags bootDisk attachedDisks "
    "scratchDisks networkInterfaces serviceAccount scheduling shieldedInstanceConfig "
    "allowStoppingForUpdate deletionProtection metadataStartupScript description hostname",
    "gcp:compute/firewall:Firewall": "allows denies sourceRanges sourceTags targetTags network",
    "gcp:compute/routerNat:RouterNat": "natIpAllocateOption natIps logConfig subnetworks",
    "gcp:compute/resourcePolicy:ResourcePolicy": "snapshotSchedulePolicy region",
    "gcp:storage/bucket:Bucket": "versioning lifecycleRules publicAccessPrevention "
    "uniformBucketLevelAccess forceDestroy labels encryption retentionPolicy",
    "gcp:storage/bucketObject:BucketObject": "source content bucket name contentType metadata",
    "gcp:compute/disk:Disk": "type size image snapshot resourcePolicies labels",
    "gcp:compute/subnetwork:Subnetwork": "ipCidrRange privateIpGoogleAccess secondaryIpRanges",
}


@pytest.mark.parametrize("token", USED)
def test_what_a_fleet_is_declared_with_is_there(accepted: dict[str, Any], token: str) -> None:
    assert set(USED[token].split()) - accepted[token].keys() == set()


PROGRAM = """\
import pulumi
import pulumi_gcp as gcp

bucket = gcp.storage.Bucket("bucket", name="a-bucket", location="US")
gcp.storage.BucketObject("file", name="file", bucket=bucket.name, source=pulumi.FileAsset("file"))
gcp.storage.BucketObject(
    "text", name="text", bucket=bucket.name, content=pulumi.Output.secret("not to be seen")
)
if pulumi.Config().get_bool("newer"):
    gcp.compute.InstanceGroupManager(
        "group", name="group", zone="us-central1-a", base_instance_name="x",
        versions=[{"instance_template": "t"}],
        all_instances_config={"metadata": {"startup-script": "x"}},
    )
"""


@pytest.fixture
def project(pulumi_env: dict[str, str], tmp_path: Path) -> tuple[dict[str, str], Path]:
    """A program of its own, with its state in a folder with a space in its name."""
    folder = tmp_path / "my project"
    (folder / "state").mkdir(parents=True)
    (folder / "Pulumi.yaml").write_text("name: probe\nruntime: python\n")
    (folder / "Pulumi.dev.yaml").write_text(
        'config:\n  gcp:project: p\n  gcp:addPulumiAttributionLabel: "false"\n'
    )
    (folder / "__main__.py").write_text(PROGRAM)
    (folder / "file").write_text("bytes")
    environ = {
        **pulumi_env,
        "PULUMI_BACKEND_URL": f"file://{folder}/state",
        "GOOGLE_OAUTH_ACCESS_TOKEN": "placeholder",
    }
    made = run(["pulumi", "stack", "init", "dev", "--non-interactive"], environ, folder)
    assert made.returncode == 0, made.stderr
    return environ, folder


PREVIEW = ("pulumi", "preview", "--stack", "dev", "--non-interactive", "--diff")


def test_files_and_secrets_are_planned(project: tuple[dict[str, str], Path]) -> None:
    environ, folder = project
    plan = run([*PREVIEW], environ, folder)
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert "source       : asset(file:" in plan.stdout
    assert "content      : [secret]" in plan.stdout
    assert "not to be seen" not in plan.stdout
    assert "warning" not in plan.stdout + plan.stderr


@pytest.mark.usefixtures("accepted")
def test_what_this_provider_does_not_know_is_refused_by_name(
    project: tuple[dict[str, str], Path],
) -> None:
    """Dropped, it would be hidden from the policies, which see the provider's checked inputs."""
    environ, folder = project
    plan = run([*PREVIEW, "--config", "newer=true"], environ, folder)
    assert plan.returncode != 0
    assert "Invalid or unknown key" in plan.stderr
    assert "allInstancesConfig" in plan.stderr
