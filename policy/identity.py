"""The service account of VMs, and their hardening: Shielded VM, OS Login, public addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .spec import PlannedVm, fleet_vms
from .values import UNKNOWN, Resource, Violation, join, walk

_DEFAULT: Final = re.compile(
    r"default|\d+-compute@developer\.gserviceaccount\.com|[^@]+@appspot\.gserviceaccount\.com"
    # Google's own agent of a project: Editor unless somebody took that away.
    r"|\d+@cloudservices\.gserviceaccount\.com"
)
_PACKAGES: Final = frozenset({"gcp", "google-native", "google", "google-beta"})
_ACCOUNT_KEYS: Final = frozenset(
    {"serviceAccount", "serviceAccounts", "serviceAccountEmail", "serviceAccountName"}
)
# Services that run a machine or container as the project's default account where none is stated:
# (module, kind) of the type, and the paths where it can be stated, in either package's words. One
# of them must be there; `x[]` is every item of a list.
_STATED: Final[Mapping[tuple[str, str], Sequence[str]]] = {
    ("appengine", "FlexibleAppVersion"): ("serviceAccount",),
    ("batch", "Job"): ("allocationPolicy.serviceAccount.email",),
    ("cloudfunctions", "Function"): (
        "serviceAccountEmail",
        "serviceConfig.serviceAccountEmail",
    ),
    ("cloudfunctionsv2", "Function"): ("serviceConfig.serviceAccountEmail",),
    ("cloudrun", "Service"): ("template.spec.serviceAccountName",),
    ("cloudrunv2", "Job"): ("template.template.serviceAccount",),
    ("cloudrunv2", "Service"): ("template.serviceAccount",),
    ("cloudrunv2", "WorkerPool"): ("template.serviceAccount",),
    ("composer", "Environment"): ("config.nodeConfig.serviceAccount",),
    ("container", "NodePool"): ("nodeConfig.serviceAccount", "config.serviceAccount"),
    ("dataflow", "FlexTemplateJob"): ("serviceAccountEmail",),
    ("dataflow", "Job"): ("serviceAccountEmail", "environment.serviceAccountEmail"),
    ("datafusion", "Instance"): ("dataprocServiceAccount",),
    ("dataproc", "Cluster"): (
        "clusterConfig.gceClusterConfig.serviceAccount",
        "config.gceClusterConfig.serviceAccount",
        # On a Kubernetes cluster, whose nodes have an account of their own.
        "virtualClusterConfig",
    ),
    ("dataproc", "WorkflowTemplate"): (
        "placement.managedCluster.config.gceClusterConfig.serviceAccount",
        "placement.clusterSelector",
    ),
    ("notebooks", "Instance"): ("serviceAccount", "gceSetup.serviceAccounts[].email"),
    ("tpu", "Node"): ("serviceAccount.email",),
    ("tpu", "V2QueuedResource"): ("tpu.nodeSpecs[].node.serviceAccount.email",),
    ("tpu", "V2Vm"): ("serviceAccount.email",),
    ("workbench", "Instance"): ("gceSetup.serviceAccounts[].email",),
}
# Without an account of their own, these take the one of their template or image, which a plan does
# not show.
_INHERITING: Final = frozenset({"InstanceFromTemplate", "InstanceFromMachineImage"})
_REMEDY: Final = (
    "Give it a service account of its own with the few roles it needs (serviceAccount.email)"
)


@dataclass(frozen=True, kw_only=True)
class AccountConfig:
    """Settings of `no-default-service-account`."""

    # More e-mail addresses that no VM may run as.
    refuse: Sequence[str] = ()
    # Resource types that are not checked.
    ignoreTypes: Sequence[str] = ()  # noqa: N815 - the name in the configuration


@dataclass(frozen=True, kw_only=True)
class HardeningConfig:
    """Settings of `hardened-vm`."""

    shieldedVm: bool = True  # noqa: N815 - the name in the configuration
    osLogin: bool = True  # noqa: N815
    # Roles whose VMs may have a public address.
    publicRoles: Sequence[str] = ("rendezvous",)  # noqa: N815


def default_accounts(resource: Resource, config: AccountConfig) -> Iterator[Violation]:
    """Machines that run as a default service account, which can do nearly everything.

    An instance or template without a `serviceAccount` block is fine: it has no account (the
    provider sends none and Compute Engine adds none). A block without `email` means the default
    account, and so does a machine of another service without an account (`_STATED`). A resource
    made from a template or image inherits an account that the plan does not show. An unknown e-mail
    address is that of an account made in the same plan.
    """
    if resource.package not in _PACKAGES or resource.type in config.ignoreTypes:
        return
    yield from _unstated(resource)
    for path, key, value in walk(resource.props):
        if key in _ACCOUNT_KEYS and not isinstance(value, list):
            yield from _account(path, value, config)


def _unstated(resource: Resource) -> Iterator[Violation]:
    """An account that Google chooses because the plan states none."""
    if resource.kind in _INHERITING and resource.props.get("serviceAccount") is None:
        yield Violation(
            path="serviceAccount",
            problem="the VM takes whatever account its template or image has",
            remedy=_REMEDY,
        )
    for paths in _must_state(resource):
        if not any(_is_stated(resource.props, path.split(".")) for path in paths):
            yield Violation(
                path=paths[0],
                problem=f"no account is stated, so this {resource.kind} runs as the project's "
                "default service account",
                remedy=f"State one of its own with the few roles it needs ({' or '.join(paths)})",
            )


def _account(path: str, value: Any, config: AccountConfig) -> Iterator[Violation]:
    """Problems with a stated account: an address, or a block with one."""
    email, where = value, path
    if isinstance(value, Mapping):
        email, where = value.get("email"), join(path, "email")
    if value is None or email is UNKNOWN:
        return
    if not email:
        problem = "no e-mail address, which means the project's default service account"
        yield Violation(path=where, problem=problem, remedy=_REMEDY)
    elif _DEFAULT.fullmatch(_address(email)) or email in config.refuse:
        problem = f"{email} is a default service account, shared and mighty"
        yield Violation(path=where, problem=problem, remedy=_REMEDY)


def _must_state(resource: Resource) -> Iterator[Sequence[str]]:
    """Paths of the accounts that a resource must state: one of each sequence."""
    module = resource.type.partition(":")[2].partition("/")[0]
    if (module, resource.kind) == ("container", "Cluster"):
        yield from _of_cluster(resource.props)
    elif (module, resource.kind) in _STATED:
        yield _STATED[module, resource.kind]


def _of_cluster(props: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """A Kubernetes cluster's nodes: those from the start, and those that it makes by itself."""
    autopilot = props.get("enableAutopilot") or _at(props, ["autopilot", "enabled"])
    scaling = _at(props, ["clusterAutoscaling", "enabled"])
    scaling = scaling or _at(props, ["autoscaling", "enableNodeAutoprovisioning"])
    if autopilot or scaling:
        yield tuple(
            f"{name}.{default}.serviceAccount"
            for name, default in (
                ("clusterAutoscaling", "autoProvisioningDefaults"),
                ("autoscaling", "autoprovisioningNodePoolDefaults"),
            )
        )
    # Other node pools are resources of their own; a removed default pool needs no account.
    if not autopilot and props.get("removeDefaultNodePool") is not True:
        pools = ("nodePools[].nodeConfig.serviceAccount", "nodePools[].config.serviceAccount")
        yield pools if props.get("nodePools") else ("nodeConfig.serviceAccount",)


def _at(value: Any, steps: Sequence[str]) -> Any:
    for step in steps:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _is_stated(value: Any, steps: Sequence[str]) -> bool:
    """Whether a path has a value, in every item of its lists. An unknown value counts."""
    if value is UNKNOWN or not steps:
        return value is not None and value != ""
    name, in_list = steps[0].removesuffix("[]"), steps[0].endswith("[]")
    value = value.get(name) if isinstance(value, Mapping) else None
    if not in_list or value is UNKNOWN:
        return _is_stated(value, steps[1:])
    return isinstance(value, list) and bool(value) and all(_is_stated(v, steps[1:]) for v in value)


def _address(email: Any) -> str:
    """The address alone, of `projects/P/serviceAccounts/ADDRESS` too."""
    return str(email).rpartition("/")[2].strip().lower()


def hardening(resource: Resource, config: HardeningConfig) -> Iterator[Violation]:
    """Shielded VM, OS Login and no public address on the fleet's VMs."""
    for vm in fleet_vms([resource]):
        if config.shieldedVm:
            yield from _shielded(vm)
        if config.osLogin:
            yield from _os_login(vm)
        if vm.role not in config.publicRoles:
            yield from _public(vm)


def _shielded(vm: PlannedVm) -> Iterator[Violation]:
    block = vm.block.get("shieldedInstanceConfig")
    if block is UNKNOWN:
        return
    path = join(vm.path, "shieldedInstanceConfig")
    for name in ("enableSecureBoot", "enableVtpm", "enableIntegrityMonitoring"):
        stated = block.get(name) if isinstance(block, Mapping) else None
        if stated is not True and stated is not UNKNOWN:
            yield Violation(
                path=join(path, name),
                problem="Shielded VM is not stated in full, so a boot that was tampered with goes "
                "unseen",
                remedy=f"Set {name} to true",
            )


def _os_login(vm: PlannedVm) -> Iterator[Violation]:
    stated = vm.metadata.get("enable-oslogin")
    if stated is UNKNOWN or str(stated).strip().upper() in {"TRUE", "1", "Y", "YES"}:
        return
    yield Violation(
        path=vm.at("enable-oslogin"),
        problem="OS Login is not on, so SSH keys in metadata open this VM",
        remedy='Set it to "TRUE"',
    )


def _public(vm: PlannedVm) -> Iterator[Violation]:
    for path, key, value in walk(vm.block, vm.path):
        if key in {"accessConfigs", "ipv6AccessConfigs"} and _there(value, path):
            yield Violation(
                path=path,
                problem=f"a VM with the role {_text(vm.role)} has a public address",
                remedy="Take it out: agents reach the rendezvous inside the subnet and the "
                "internet, if at all, through Cloud NAT",
            )


def _there(value: Any, path: str) -> bool:
    return value is not None and value != [] and not path.endswith("]")


def _text(role: Any) -> str:
    return role if isinstance(role, str) else "unknown"
