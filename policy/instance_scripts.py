"""Ghost scripts: startup scripts anywhere but in the project's one item.

Google's guest agent looks for a startup script at the instance first. If it finds one, it never
looks at the project's, so the instance's script silently replaces the fleet's. Other metadata keys
run code beside it. tests/ghosts.py lists all of them and what each does on which image. The
program, the VMs and `ops audit` have lists of their own; the table holds the four to the same
verdicts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .values import UNKNOWN, Resource, Violation, join, walk

OWNER: Final = "gcp:compute/projectMetadataItem:ProjectMetadataItem"
OWNER_KEY: Final = "startup-script"
_REPLACES: Final = "runs at every boot in place of the project's startup script"

# Keys of metadata, in lower case and without blanks around them, and what a guest does with them.
_KEYS: Final = tuple(
    (re.compile(pattern), does)
    for pattern, does in (
        (r"startup-script(-url)?", _REPLACES),
        (
            r"windows-startup-script(-(url|ps1|cmd|bat))?|startup-script-(ps1|cmd|bat)",
            "runs at every boot of a Windows VM",
        ),
        (
            r"(windows-)?shutdown-script(-(url|ps1|cmd|bat))?",
            "runs whenever the VM shuts down",
        ),
        (
            r"sysprep-(specialize|oobe)-script(-(url|ps1|cmd|bat))?",
            "runs when a Windows VM is set up",
        ),
        (
            r"user-data(-encoding)?|vendor-data|cloud-?init|cloud-config",
            "is what cloud-init and its kin run at boot (Ubuntu, Container-Optimized OS, Flatcar)",
        ),
        (
            r"bootstrap-script(-url)?|(user|vendor)-data-.+",
            "is named like a script: none of Google's images runs it, one of your own may",
        ),
        (
            r"gce-container-declaration|google-container-manifest",
            "starts containers at boot on Container-Optimized OS",
        ),
        (
            r"(containerd-)?configure-sh|(k8s-node-setup|common)-psm1",
            "is run at boot by the images of GKE's nodes",
        ),
        (
            r"post-startup-script(-url)?",
            "is run after boot by the images of Deep Learning VM and Workbench",
        ),
        (r"gce-software-declaration", "makes Google's OS Config agent run install scripts"),
        (
            r"enable-osconfig|os-?config-enabled-prerelease-features",
            "makes Google's OS Config agent run the scripts of policies and patch jobs",
        ),
        (
            r"os-?config-endpoint",
            "makes Google's OS Config agent take its scripts from another server",
        ),
    )
)
# Keys with values that do no harm.
_OFF: Final = {"enable-osconfig": frozenset({"false", "f", "0"})}

# Properties, from the docstrings of pulumi-gcp 10.2: metadataStartupScript (Compute Engine),
# startupScript (Hypercompute Cluster), postStartupScript… (Colab, Workbench), initScript (GKE's
# custom node init), initializationActions (Dataproc): each is run as root when a VM starts. Not
# here: scripts that another service runs later and on its own terms (OS Config, Cloud Build, SQL,
# Slurm's prologs).
_PROPERTY: Final = re.compile(
    r"(startup|shutdown|specialize|bootstrap)script|^metadata_startup_scripts?$|^init_?scripts?$"
    r"|^initialization_?actions?$"
)
# Maps and lists of pairs whose own keys are never metadata: from a survey of all maps of text in
# pulumi-gcp 10.2. Deeper levels inside are walked.
_INERT: Final = re.compile(
    r"(labels|annotations|headers?|headerstoadds?|tags|taints?|tolerations|variables|envvars"
    r"|attributes|parameters|params|substitutions|conditions|selectors?|affinities|expressions"
    r"|filters|mappings?|overrides|properties)$"
    r"|^(env|envs|data|vars|values|args|options|custommetadata|parametervalues)$"
)
# Blocks that hold metadata or a script somewhere below, in pulumi-gcp 10.2. An unknown one could
# hide a script. tests/policy/test_sdk.py reads the SDK and fails when one is missing.
_HOLDERS: Final = re.compile(
    r"metadata|^(items|properties|instanceproperties|preservedstate|allinstancesconfig"
    r"|nodeconfig|nodepools?|linuxnodeconfig|customnodeinit|placement|managedcluster|config"
    r"|clusterconfig|gceclusterconfig|gcesetup|virtualmachine|virtualmachineconfig|host"
    r"|gceinstance|computeinstancerestoreproperties|softwareconfig|orchestrator|slurm"
    r"|loginnodes|nodesets|computeinstance)$"
)
# A resource with one of these keys in its metadata or labels belongs to the fleet.
_FLEETS: Final = frozenset({"pilot-role", "pilot-spec", "pilot-fleet"})
# These reach every VM of a project or zone, so the fleet's too.
_PROJECTS: Final = re.compile(r"project(common)?metadata(item)?$", re.IGNORECASE)
_FOR_ALL: Final = re.compile(rf"{_PROJECTS.pattern}|instancesettings$", re.IGNORECASE)
_OBJECT: Final = re.compile(r"bucketobject$", re.IGNORECASE)
_LATER: Final = (
    "A preview only remarks it, `make up` refuses it before anything is made, and a plain "
    "`pulumi up` judges it once it is known, when what does not wait for it may be made"
)
_REMEDY: Final = (
    "Take it out: code belongs into the project's one startup-script item "
    f"({OWNER}, key {OWNER_KEY}), data into keys of another name"
)
_ALLOW: Final = (
    f"{_REMEDY}. If this is not the fleet's and the script is wanted, name it in allowedScripts of "
    "the stack file and in allowed of no-ghost-startup-script in policy/settings.json"
)


@dataclass(frozen=True, kw_only=True)
class GhostsConfig:
    """Settings of `no-ghost-startup-script`."""

    # Packages of other clouds, whose resources are not walked. All others are, because a package
    # can have any name.
    otherClouds: Sequence[str] = (  # noqa: N815 - the name in the configuration
        "alicloud",
        "aws",
        "aws-native",
        "azure",
        "azure-native",
        "kubernetes",
        "oci",
        "openstack",
        "yandex",
    )
    # More metadata keys or properties to refuse.
    extraKeys: Sequence[str] = ()  # noqa: N815
    # Resource types that are not walked.
    ignoreTypes: Sequence[str] = ()  # noqa: N815
    # Names of resources outside the fleet whose script is wanted.
    allowed: Sequence[str] = ()


def what_runs(name: str, value: Any = UNKNOWN, extra: Iterable[str] = ()) -> str:
    """The effect of a metadata key or property with this name and value on a VM; "" for none."""
    key = name.strip().lower()
    if isinstance(value, str) and value.strip().lower() in _OFF.get(key, ()):
        return ""
    for pattern, does in _KEYS:
        if pattern.fullmatch(key):
            return does
    if "-" not in key and _PROPERTY.search(key):
        return _REPLACES if key.startswith("metadata") else "is run when a machine starts"
    return "is refused by this site" if key in {one.strip().lower() for one in extra} else ""


def is_owner(resource: Resource) -> bool:
    """Whether this is the one resource that may hold a startup script: the project's item."""
    return resource.type == OWNER and resource.props.get("key") == OWNER_KEY


def is_allowed(resource: Resource, config: GhostsConfig) -> bool:
    """Whether the script of this resource is wanted: its name is allowed, and it does not reach the
    fleet's VMs."""
    is_named = resource.name in config.allowed or resource.props.get("name") in config.allowed
    return is_named and not _reaches_the_fleet(resource)


def _reaches_the_fleet(resource: Resource) -> bool:
    if _FOR_ALL.search(resource.kind):
        return True
    return any(
        key in _FLEETS or (key == "key" and isinstance(value, str) and value in _FLEETS)
        for _, key, value in walk(resource.props)
    )


def owns_all_metadata(resource: Resource) -> bool:
    """Whether this is all metadata of a project, in whatever package, and no single item."""
    is_item = resource.kind.lower().endswith("item")
    return bool(_PROJECTS.search(resource.kind)) and not is_item


def ghosts(resource: Resource, config: GhostsConfig) -> Iterator[Violation]:
    """Everything in `resource` that is, or could turn out to be, a startup script.

    A key alone is enough: its value, empty, unknown or secret, changes nothing. `None` is what
    the provider takes for absent.
    """
    if resource.package in config.otherClouds or resource.type in config.ignoreTypes:
        return
    if is_owner(resource) or is_allowed(resource, config):
        return
    finder = _Finder(resource=resource, extra=config.extraKeys)
    yield from finder.pair("", resource.props)
    yield from finder.look("", "", resource.props)


@dataclass(frozen=True, kw_only=True)
class _Finder:
    """Walks a resource's inputs, with the name of the property that holds each map."""

    resource: Resource
    extra: Sequence[str]

    def look(self, path: str, name: str, value: Any) -> Iterator[Violation]:
        """`name`: of the property that holds `value`; items of a list have the list's name."""
        if isinstance(value, Mapping):
            for key, inner in value.items():
                yield from self._entry(join(path, key), key, inner, is_inert=self._is_inert(name))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                here = join(path, index)
                if inner is UNKNOWN and self._could_hide(name):
                    yield _unjudged(here)
                if isinstance(inner, Mapping) and not self._is_inert(name):
                    yield from self.pair(here, inner)
                yield from self.look(here, name, inner)

    def _entry(self, path: str, key: str, value: Any, *, is_inert: bool) -> Iterator[Violation]:
        does = "" if is_inert or value is None else what_runs(key, value, self.extra)
        if does:
            yield self._finding(path, f"{_shown(value)} that {does}")
            return
        if value is UNKNOWN and self._could_hide(key):
            yield _unjudged(path)
        if isinstance(value, Mapping) and not self._is_inert(key):
            yield from self.pair(path, value)
        yield from self.look(path, key, value)

    def pair(self, path: str, value: Mapping[str, Any]) -> Iterator[Violation]:
        """Metadata written as the API does: `{"key": K, "value": V}`, alone or as a list's item."""
        if "key" not in value or not {"value", "values"} & value.keys():
            return
        if {"effect", "operator"} & value.keys():  # A taint, a toleration, an affinity.
            return
        key, where = value["key"], join(path, "key")
        if isinstance(key, str):
            if does := what_runs(key, value.get("value", UNKNOWN), self.extra):
                if _PROJECTS.search(self.resource.kind):
                    does = does.replace("in place of", "beside")
                yield self._finding(where, f"{key!r} names {_shown('')} that {does}")
        elif key is UNKNOWN:
            yield Violation(
                path=where,
                problem="the name of a metadata key is not known yet, so it could be a script's",
                remedy=f"Write the name out. {_LATER}",
                unjudged=True,
            )

    def _finding(self, path: str, problem: str) -> Violation:
        remedy = _REMEDY if _reaches_the_fleet(self.resource) else _ALLOW
        return Violation(path=path, problem=problem, remedy=remedy)

    def _is_inert(self, name: str) -> bool:
        folded = _folded(name)
        if folded == "metadata" and _OBJECT.search(self.resource.kind):
            return True
        return bool(_INERT.search(folded))

    def _could_hide(self, name: str) -> bool:
        return bool(_HOLDERS.search(_folded(name))) and (
            _folded(name) == "properties" or not self._is_inert(name)
        )


def _folded(name: str) -> str:
    return name.replace("_", "").lower()


def _shown(value: Any) -> str:
    return "an unknown value" if value is UNKNOWN else "a value"


def _unjudged(path: str) -> Violation:
    return Violation(
        path=path,
        problem="not known yet, so nobody can say whether a startup script is in it",
        remedy="Write its keys out, and let only values depend on other resources' outputs. "
        f"{_LATER}",
        unjudged=True,
    )
