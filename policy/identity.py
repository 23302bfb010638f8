"""What a VM may be: whose account it runs as, and how it is reached."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .spec import Vm, fleet_vms
from .values import UNKNOWN, Finding, Resource, join, walk

_DEFAULT: Final = re.compile(
    r"(default|\d+-compute@developer\.gserviceaccount\.com|[^@]+@appspot\.gserviceaccount\.com)"
)
_ACCOUNT_KEYS: Final = frozenset({"serviceAccount", "serviceAccounts", "serviceAccountEmail"})
# Made without an account of their own, these take the one of what they are made from, which a
# plan does not show.
_INHERITING: Final = frozenset({"InstanceFromTemplate", "InstanceFromMachineImage"})
_REMEDY: Final = (
    "Give it a service account of its own with the few roles it needs (serviceAccount.email)"
)


@dataclass(frozen=True, kw_only=True)
class AccountConfig:
    """`refuse`: more e-mail addresses that no VM may run as. `ignoreTypes`: resource types that
    are not looked at."""

    refuse: Sequence[str] = ()
    ignoreTypes: Sequence[str] = ()  # noqa: N815 - the name in the configuration


@dataclass(frozen=True, kw_only=True)
class HardeningConfig:
    """What the policy asks of a VM of the fleet; each can be switched off. `publicRoles`: roles
    whose VMs may have a public address."""

    shieldedVm: bool = True  # noqa: N815 - the name in the configuration
    osLogin: bool = True  # noqa: N815
    publicRoles: Sequence[str] = ("rendezvous",)  # noqa: N815


def default_accounts(resource: Resource, config: AccountConfig) -> Iterator[Finding]:
    """Machines that run as a default service account, which can do nearly everything.

    An instance or template without a `serviceAccount` block has no account at all (the provider
    sends none and Compute Engine adds none), so that is fine. A block without `email` means the
    default account, and something made from a template or an image inherits what the plan does
    not show. An unknown e-mail address is that of an account made in the same plan.
    """
    if resource.package != "gcp" or resource.type in config.ignoreTypes:
        return
    if resource.kind in _INHERITING and resource.props.get("serviceAccount") is None:
        yield Finding(
            path="serviceAccount",
            problem="the VM takes whatever account its template or image has",
            remedy=_REMEDY,
        )
    for path, key, value in walk(resource.props):
        if key not in _ACCOUNT_KEYS:
            continue
        email, where = value, path
        if isinstance(value, list):
            continue
        if isinstance(value, Mapping):
            email, where = value.get("email"), join(path, "email")
        if value is None or email is UNKNOWN:
            continue
        if not email:
            problem = "no e-mail address, which means the project's default service account"
            yield Finding(path=where, problem=problem, remedy=_REMEDY)
        elif _DEFAULT.fullmatch(str(email).strip().lower()) or email in config.refuse:
            problem = f"{email} is a default service account, shared and mighty"
            yield Finding(path=where, problem=problem, remedy=_REMEDY)


def hardening(resource: Resource, config: HardeningConfig) -> Iterator[Finding]:
    """Shielded VM, OS Login and no public address on the fleet's VMs."""
    for vm in fleet_vms([resource]):
        if config.shieldedVm:
            yield from _shielded(vm)
        if config.osLogin:
            yield from _os_login(vm)
        if vm.role not in config.publicRoles:
            yield from _public(vm)


def _shielded(vm: Vm) -> Iterator[Finding]:
    block = vm.block.get("shieldedInstanceConfig")
    if block is UNKNOWN:
        return
    path = join(vm.path, "shieldedInstanceConfig")
    for name in ("enableSecureBoot", "enableVtpm", "enableIntegrityMonitoring"):
        stated = block.get(name) if isinstance(block, Mapping) else None
        if stated is not True and stated is not UNKNOWN:
            yield Finding(
                path=join(path, name),
                problem="Shielded VM is not stated in full, so a boot that was tampered with goes "
                "unseen",
                remedy=f"Set {name} to true",
            )


def _os_login(vm: Vm) -> Iterator[Finding]:
    stated = vm.metadata.get("enable-oslogin")
    if stated is UNKNOWN or str(stated).strip().upper() in {"TRUE", "1", "Y", "YES"}:
        return
    yield Finding(
        path=vm.at("enable-oslogin"),
        problem="OS Login is not on, so SSH keys in metadata open this VM",
        remedy='Set it to "TRUE"',
    )


def _public(vm: Vm) -> Iterator[Finding]:
    for path, key, value in walk(vm.block, vm.path):
        if key in {"accessConfigs", "ipv6AccessConfigs"} and _there(value, path):
            yield Finding(
                path=path,
                problem=f"a VM with the role {_text(vm.role)} has a public address",
                remedy="Take it out: agents reach the rendezvous inside the subnet and the "
                "internet, if at all, through Cloud NAT",
            )


def _there(value: Any, path: str) -> bool:
    return value is not None and value != [] and not path.endswith("]")


def _text(role: Any) -> str:
    return role if isinstance(role, str) else "unknown"
