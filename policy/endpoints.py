"""The endpoints to which the fleet's VMs send their service account's token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .spec import fleet_vms, parse_spec
from .values import Resource, Violation

# Strict rather than complete: it refuses a URL that two programs could read differently, a host
# that cannot be looked up, and a path, which a VM refuses.
_GOOGLE: Final = re.compile(
    r"https://(?=[^:]{1,253}(?::|$))(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+googleapis\.com(?::443)?"
)


@dataclass(frozen=True, kw_only=True)
class EndpointsConfig:
    """Settings of `endpoints-are-googles`."""

    # More URLs that a spec may name, letter for letter.
    allowed: Sequence[str] = ()
    # Stacks on another cloud than Google's, such as a lab's.
    exemptStacks: Sequence[str] = ()  # noqa: N815 - the name in the configuration


def not_googles(resource: Resource, config: EndpointsConfig) -> Iterator[Violation]:
    """Endpoints in a VM's spec that are not Google's, or not over TLS.

    `vm-fits` reports an unknown or malformed spec.
    """
    if resource.stack in config.exemptStacks:
        return
    for vm in fleet_vms([resource]):
        spec = parse_spec(vm.metadata.get("pilot-spec"))
        endpoints = spec.get("endpoints") if isinstance(spec, Mapping) else None
        if endpoints is None:
            continue
        named = endpoints.items() if isinstance(endpoints, Mapping) else [("", endpoints)]
        for name, url in named:
            if isinstance(url, str) and (_GOOGLE.fullmatch(url) or url in config.allowed):
                continue
            path = ".".join(filter(None, ["endpoints", name]))
            yield Violation(
                path=f"{vm.at('pilot-spec')} {path}",
                problem=f"{url!r} would get this VM's service-account token, and is not a "
                "service of Google over TLS",
                remedy="Use https://storage.googleapis.com (another host below googleapis.com, "
                "without a path), or configure allowed",
            )
