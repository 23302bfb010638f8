"""A rule that raises stops the run with a traceback, so no rule raises, whatever it is given."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from policy import (
    endpoints,
    exposure,
    fits,
    identity,
    instance_scripts,
    project_script,
    protection,
    zones,
)
from policy.values import UNKNOWN, Resource
from tests.policy.planned import INSTANCE, SCRIPT, owner, planned, spec, vm, vm_props

_KEYS = st.sampled_from(
    [
        "accessConfigs",
        "action",
        "allows",
        "direction",
        "disabled",
        "clusterAutoscaling",
        "email",
        "gceSetup",
        "nodePools",
        "serviceAccounts",
        "enable-oslogin",
        "ipProtocol",
        "key",
        "zone",
        "layer4Configs",
        "machineType",
        "match",
        "metadata",
        "networkInterfaces",
        "pilot-role",
        "pilot-spec",
        "ports",
        "protocol",
        "serviceAccount",
        "shieldedInstanceConfig",
        "sourceRanges",
        "sourceTags",
        "allowed",
        "items",
        "srcAddressGroups",
        "srcIpRanges",
        "srcNetworkScope",
        "startup-script",
        "value",
    ]
)
_WORDS = st.sampled_from(
    ["", "INGRESS", "allow", "tcp", "22", "0-x", "::/0", "0.0.0.0/0", "swarm", "rendezvous", "{}"]
)
_LEAVES = (
    st.none()
    | st.just(UNKNOWN)
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | _WORDS
)
_ANYTHING = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=25,
)
_KINDS = st.sampled_from(
    [
        INSTANCE,
        "gcp:compute/instanceFromTemplate:InstanceFromTemplate",
        "gcp:compute/projectMetadataItem:ProjectMetadataItem",
        "gcp:compute/projectMetadata:ProjectMetadata",
        "gcp:compute/disk:Disk",
        "gcp:container/cluster:Cluster",
        "gcp:networksecurity/addressGroup:AddressGroup",
        "gcp:workbench/instance:Instance",
        "gcp",
        "",
    ]
)


def judge(*resources: Resource) -> list[str]:
    """The findings of all rules about `resources`."""
    found = []
    for one in resources:
        found += list(instance_scripts.ghosts(one, instance_scripts.GhostsConfig()))
        found += list(project_script.guarded_script(one, project_script.ProjectScriptConfig()))
        found += list(fits.vm_fits(one, fits.VmConfig()))
        found += list(exposure.open_to_the_world(one, exposure.ExposureConfig()))
        found += list(identity.default_accounts(one, identity.AccountConfig()))
        found += list(endpoints.not_googles(one, endpoints.EndpointsConfig()))
        found += list(identity.hardening(one, identity.HardeningConfig()))
        found += list(protection.unprotected(one, protection.ProtectionConfig()))
    found += [finding for _, finding in project_script.one_script(resources)]
    found += [finding for _, finding in fits.fleet_fits(resources, fits.FitsConfig())]
    found += [finding for _, finding in zones.losing_a_zone(resources, zones.ZonesConfig())]
    return [str(finding) for finding in found]


@given(_KINDS, st.dictionaries(_KEYS, _ANYTHING, max_size=6))
def test_any_inputs(kind: str, props: dict[str, Any]) -> None:
    judge(planned(kind, props))


@given(
    st.dictionaries(st.sampled_from([*sorted(spec()), "endpoints"]), _ANYTHING, max_size=3),
    _ANYTHING,
)
def test_any_spec(changes: dict[str, Any], machine: Any) -> None:
    document = spec() | changes
    text = json.dumps(document, default=str)
    props = vm_props(spec(), machine)
    props["metadata"]["pilot-spec"] = text
    judge(planned(INSTANCE, props), vm(spec("rendezvous")), owner())


@given(st.text(), st.integers(0, 300))
def test_any_damage_to_the_text_of_a_spec(junk: str, where: int) -> None:
    text = json.dumps(spec())
    judge(vm(text[:where] + junk + text[where:]), owner(SCRIPT))
