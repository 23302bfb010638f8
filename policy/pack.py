"""The rules as policies of the Pulumi SDK: names, levels, descriptions, configuration.

A rule yields findings. A finding that cannot be judged yet is a remark in a preview and a refusal
in an update. A policy of the SDK has one level for all its reports, so the last policy, which is
advisory, reports the remarks of the policies about single resources.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyConfigSchema,
    PolicyPack,
    PolicyResource,
    ReportViolation,
    ResourceValidationArgs,
    ResourceValidationPolicy,
    StackValidationArgs,
    StackValidationPolicy,
)
from pulumi_policy import policy as sdk

from . import (
    endpoints,
    exposure,
    fits,
    identity,
    instance_scripts,
    project_script,
    protection,
    zones,
)
from .values import Resource, Violation, plain

NAME: Final = "pilot-fleet"
MUST_KNOW: Final = "PILOT_REFUSE_UNKNOWN"

_STRINGS: Final = {"type": "array", "items": {"type": "string", "minLength": 1}}
_COUNT: Final = {"type": "number", "minimum": 0}
_SIZE: Final = {"type": "number", "exclusiveMinimum": 0}
_SHARE: Final = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
_PREFIX: Final = {"type": "integer", "minimum": 0, "maximum": 128}
_SWITCH: Final = {"type": "boolean"}
_TEXT: Final = {"type": "string"}
_ROLES: Final = {"type": "array", "items": {"enum": list(fits.ROLES)}}
_PORTS: Final = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}}
_MACHINES: Final = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"memoryGb": _SIZE, "vcpus": _SIZE},
        "required": ["memoryGb"],
        "additionalProperties": False,
    },
}


class Mode:
    """Whether this run is a preview. The engine says so once, before it asks about resources.

    The SDK does not pass it on to policies, so `watch` intercepts it. `preview` stays `None` with
    an engine that does not say so. An unknown value then is a remark, because only a preview has
    unknown values.
    """

    def __init__(self) -> None:
        dry_run = os.environ.get("PULUMI_DRY_RUN")
        self.preview: bool | None = None if dry_run is None else dry_run == "true"
        # `make up` sets it: a plan with unknown values is refused.
        self._must_know = os.environ.get(MUST_KNOW) == "1"

    def watch(self) -> None:
        """Note the mode from now on whenever the engine configures the pack."""
        # Private, but the SDK has no hook for it; a test speaks the engine's protocol.
        servicer: Any = sdk._PolicyAnalyzerServicer
        configure = servicer.ConfigureStack

        def configure_stack(this: Any, request: Any, context: Any) -> Any:
            self.preview = bool(request.dry_run)
            return configure(this, request, context)

        servicer.ConfigureStack = configure_stack

    @property
    def refuses_unknown(self) -> bool:
        """Whether an unknown value is refused: it will stay unknown, or `make up` asks for it."""
        return self.preview is False or self._must_know


class Remarks(threading.local):
    """Findings that are not judged yet, until the last policy reports them.

    The SDK runs all policies of a resource in turn on one thread, and resources on several.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, str, Violation]] = []

    def add(self, policy: str, urn: str, finding: Violation) -> None:
        """Keep what `policy` could not judge about the resource `urn`."""
        self.found.append((policy, urn, finding))

    def take(self, urn: str) -> list[tuple[str, Violation]]:
        """Return the findings about the resource `urn`, and forget all of them."""
        mine = [(policy, finding) for policy, of, finding in self.found if of == urn]
        self.found = []
        return mine


class Inputs:
    """The inputs of resources, as the policies about single resources saw them, by URN.

    The engine shows a stack policy the planned outputs instead, in which a provider may lose
    information: in a preview, one unknown value makes an instance's whole metadata unknown.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Resource] = {}

    def note(self, resource: Resource) -> Resource:
        """Keep `resource` for the stack policies, which come last."""
        self._seen[resource.urn] = resource
        return resource

    def declared(self, resources: Iterable[Resource]) -> list[Resource]:
        """The inputs of those of `resources` that the program declares; all of them, unchanged,
        where no inputs were seen.

        In a run with a refresh the engine also shows a stack policy the resources that this run is
        about to delete.
        """
        if not self._seen:
            return list(resources)
        return [self._seen[one.urn] for one in resources if one.urn in self._seen]


def resource_of(args: ResourceValidationArgs | PolicyResource) -> Resource:
    """Convert the SDK's view of a resource for a rule."""
    return Resource(
        type=args.resource_type,
        name=args.name,
        urn=args.urn,
        props=plain(args.props),
        protect=bool(args.opts.protect),
    )


@dataclasses.dataclass(frozen=True)
class NoConfig:
    """Settings of a policy without settings."""


def configured(policy: str, kind: type[Any], given: Mapping[str, Any]) -> Any:
    """A rule's configuration from `given`, whose types the engine has checked with the schema.

    Raises ValueError for a name that `kind` does not have: the engine lets it through, and it
    would silently change nothing.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    wrong = sorted(set(given) - set(names))
    if wrong:
        raise ValueError(
            f"the policy {policy} has no setting {', '.join(wrong)}. It has: "
            f"{', '.join(names) or 'none'}. Correct the file given with --policy-pack-config."
        )
    return kind(**plain(given))


def _schema(**properties: Mapping[str, Any]) -> PolicyConfigSchema:
    return PolicyConfigSchema({name: dict(schema) for name, schema in properties.items()})


class Rules:
    """Makes policies from rules. They share the mode of the run, the remarks and the inputs."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._inputs = Inputs()
        self._remarks = Remarks()

    def resource(
        self,
        name: str,
        description: str,
        rule: Callable[[Resource, Any], Iterable[Violation]],
        config: type[Any],
        schema: PolicyConfigSchema,
    ) -> Policy:
        """A mandatory policy about single resources, judged before anything is made of them."""

        def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
            resource = self._inputs.note(resource_of(args))
            for finding in rule(resource, configured(name, config, args.get_config())):
                if finding.unjudged and not self._mode.refuses_unknown:
                    self._remarks.add(name, args.urn, finding)
                else:
                    report(str(finding), None)

        return ResourceValidationPolicy(
            name, description, validate, EnforcementLevel.MANDATORY, schema
        )

    def stack(
        self,
        name: str,
        description: str,
        rule: Callable[[list[Resource], Any], Iterable[tuple[Resource | None, Violation]]],
        config: type[Any],
        schema: PolicyConfigSchema,
    ) -> Policy:
        """A mandatory policy about the whole stack. The engine asks it when all are there."""

        def validate(args: StackValidationArgs, report: ReportViolation) -> None:
            resources = self._inputs.declared(resource_of(one) for one in args.resources)
            for culprit, finding in rule(resources, configured(name, config, args.get_config())):
                report(str(finding), culprit.urn if culprit else None)

        return StackValidationPolicy(
            name, description, validate, EnforcementLevel.MANDATORY, schema
        )

    def remarks(self, name: str, description: str) -> Policy:
        """The advisory policy that reports the findings that could not be judged yet."""

        def validate(args: ResourceValidationArgs, report: ReportViolation) -> None:
            for policy, finding in self._remarks.take(args.urn):
                report(f"{policy} could not judge {finding}", None)

        return ResourceValidationPolicy(name, description, validate, EnforcementLevel.ADVISORY)


def policies(mode: Mode) -> list[Policy]:
    """All policies, in the order in which they look at a resource."""
    rules = Rules(mode)
    return [
        rules.resource(
            "no-ghost-startup-script",
            "No startup script anywhere but in the project's one item: on a VM that has one of "
            "its own, the project's never runs.",
            instance_scripts.ghosts,
            instance_scripts.GhostsConfig,
            _schema(
                otherClouds=_STRINGS, extraKeys=_STRINGS, ignoreTypes=_STRINGS, allowed=_STRINGS
            ),
        ),
        rules.resource(
            "guarded-project-script",
            "The project's startup script is one item of project metadata, known in the plan, "
            "below Compute Engine's size limit, and has its guard.",
            project_script.guarded_script,
            project_script.ProjectScriptConfig,
            _schema(secondLine=_TEXT, contains=_STRINGS, maxBytes=_SIZE),
        ),
        rules.resource(
            "vm-fits",
            "Every VM of the fleet has a good spec, and its memory and ports are enough for it.",
            fits.vm_fits,
            fits.VmConfig,
            _schema(
                machineTypes=_MACHINES,
                minAgentMb=_COUNT,
                minReserveMb=_COUNT,
                minConnectionMb=_COUNT,
                localPorts={"type": "integer", "minimum": 1, "maximum": 65535},
                localPortsPerAgent=_SIZE,
            ),
        ),
        rules.resource(
            "not-open-to-the-world",
            "Registry, dashboard and SSH are open to named ranges only.",
            exposure.open_to_the_world,
            exposure.ExposureConfig,
            _schema(
                ports=_PORTS,
                widestV4={**_PREFIX, "maximum": 32},
                widestV6=_PREFIX,
                vagueSources=_STRINGS,
                exemptGroups=_STRINGS,
            ),
        ),
        rules.resource(
            "no-default-service-account",
            "No VM runs as a default service account.",
            identity.default_accounts,
            identity.AccountConfig,
            _schema(refuse=_STRINGS, ignoreTypes=_STRINGS),
        ),
        rules.resource(
            "endpoints-are-googles",
            "A VM of the fleet sends its service account's token to Google only.",
            endpoints.not_googles,
            endpoints.EndpointsConfig,
            _schema(allowed=_STRINGS, exemptStacks=_STRINGS),
        ),
        rules.resource(
            "hardened-vm",
            "A VM of the fleet states Shielded VM and OS Login, and only a rendezvous may have a "
            "public address.",
            identity.hardening,
            identity.HardeningConfig,
            _schema(shieldedVm=_SWITCH, osLogin=_SWITCH, publicRoles=_ROLES),
        ),
        rules.resource(
            "stateful-protected",
            "Resources that hold state are protected from deletion.",
            protection.unprotected,
            protection.ProtectionConfig,
            _schema(types=_STRINGS, exemptStacks=_STRINGS, exemptNames=_STRINGS),
        ),
        rules.stack(
            "one-project-script",
            "The project's startup script has one owner and is the one that every VM expects.",
            lambda resources, _: project_script.one_script(resources),
            NoConfig,
            _schema(),
        ),
        rules.stack(
            "fleet-fits",
            "The fleet has one rendezvous, and it can carry all agents.",
            fits.fleet_fits,
            fits.FitsConfig,
            _schema(machineTypes=_MACHINES, connectionsPerAgent=_SIZE, connectionsPerGb=_SIZE),
        ),
        rules.stack(
            "zones-can-be-lost",
            "The fleet's VMs are in one region, and no zone holds a larger share of the agents "
            "than this site allows.",
            zones.losing_a_zone,
            zones.ZonesConfig,
            _schema(maxZoneShare=_SHARE),
        ),
        # Last, because it reports the remarks of those before it.
        rules.remarks(
            "judged-in-preview",
            "Values that are unknown in the preview are judged in the update, and refused there if "
            "they are still unknown.",
        ),
    ]


def serve() -> None:
    """Serve the policies to the engine, until it ends the process."""
    mode = Mode()
    mode.watch()
    PolicyPack(NAME, policies(mode), EnforcementLevel.MANDATORY)
