"""Stack files for tests, and the whole program under Pulumi's mocks."""

from __future__ import annotations

import copy
import json
import runpy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from pulumi.runtime.mocks import MockMonitor

from components import accounts, last_update, rendezvous_zone, zone_types
from components.config import FleetConfig
from components.config_parse import parse_fleet
from components.config_reader import ConfigError
from components.last_update import LastUpdate

ROOT = Path(__file__).resolve().parents[2]
SEED_FILE = ROOT / "Pulumi.swarm.yaml"


def seed() -> dict[str, Any]:
    """The seed's fleet: the values of `pilot-fleet:` in Pulumi.swarm.yaml, without prefix."""
    config = yaml.safe_load(SEED_FILE.read_text())["config"]
    return {
        key.removeprefix("pilot-fleet:"): value
        for key, value in config.items()
        if key.startswith("pilot-fleet:")
    }


def changed(**values: Any) -> dict[str, Any]:
    """The seed's fleet with some keys changed."""
    return copy.deepcopy(seed()) | values


def swarm(**values: Any) -> dict[str, Any]:
    """The seed's fleet with one VM, some of whose keys are changed."""
    return changed(
        swarm=[{"name": "swarm-1", "machineType": "e2-standard-16", "agents": 3000} | values]
    )


def parse(values: dict[str, Any], project: str | None = "project-1") -> FleetConfig:
    """The fleet that `values` describes."""
    return parse_fleet(values, project=project)


def problems(values: dict[str, Any], project: str | None = "project-1") -> dict[str, str]:
    """The problems of `values`, by path."""
    with pytest.raises(ConfigError) as caught:
        parse(values, project)
    return {problem.path: problem.message for problem in caught.value.problems}


class Recorder(pulumi.runtime.Mocks):
    """Records what the program declares; answers with its inputs and a few invented outputs."""

    def __init__(self) -> None:
        self.resources: dict[tuple[str, str], dict[str, Any]] = {}
        self.protected: set[str] = set()
        """Names of the resources that no update deletes."""
        self.waits_for: dict[str, set[str]] = {}
        """By name, the names of the resources that must be done first."""

    def new_resource(
        self, args: pulumi.runtime.MockResourceArgs
    ) -> tuple[str | None, dict[Any, Any]]:
        # A file by its path: an asset is equal to itself only.
        self.resources[args.typ, args.name] = {
            key: value.path if isinstance(value, pulumi.FileAsset) else value
            for key, value in args.inputs.items()
        }
        outputs = dict(args.inputs)
        if args.typ == "gcp:serviceaccount/account:Account":
            outputs["email"] = f"{args.inputs['accountId']}@project.iam.gserviceaccount.com"
        if args.typ == "gcp:projects/iAMCustomRole:IAMCustomRole":
            outputs["name"] = f"projects/{args.inputs['project']}/roles/{args.inputs['roleId']}"
        if args.typ == "gcp:compute/address:Address":
            outputs.setdefault("address", "198.51.100.7")
        return f"{args.name}-id", outputs

    def call(
        self, args: pulumi.runtime.MockCallArgs
    ) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        # The program asks while it plans for the stack's last state, here that of a new stack,
        # and of the cloud whether the images are there.
        if args.token == "pulumi:pulumi:readStackOutputs":
            return {"outputs": {}}, []
        assert args.token == "gcp:compute/getImage:getImage", args.token
        return {"name": args.args.get("name"), "diskSizeGb": 10}, []

    def of(self, type_: str) -> dict[str, dict[str, Any]]:
        """Inputs by resource name of one type, such as `compute/instance:Instance`."""
        return {
            name: inputs for (typ, name), inputs in self.resources.items() if typ == f"gcp:{type_}"
        }

    def spec(self, vm: str) -> dict[str, Any]:
        """The spec of one VM."""
        spec = json.loads(
            self.of("compute/instance:Instance")[f"{vm}-vm"]["metadata"]["pilot-spec"]
        )
        assert isinstance(spec, dict)
        return spec


class _Monitor(MockMonitor):
    """Also records the options of resources, which mocks are not told."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._recorder = recorder

    def RegisterResource(self, request: Any) -> Any:  # noqa: N802 - the monitor's word
        if request.protect:
            self._recorder.protected.add(request.name)
        first = {urn.rpartition("::")[2] for urn in request.dependencies}
        self._recorder.waits_for[request.name] = first
        return super().RegisterResource(request)  # type: ignore[no-untyped-call]


@contextmanager
def _environment(config: Mapping[str, Any]) -> Iterator[pytest.MonkeyPatch]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PULUMI_CONFIG", json.dumps(config))
    try:
        yield patch
    finally:
        patch.undo()


def run_program(
    values: Mapping[str, Any],
    *,
    project: str = "project-1",
    preview: bool = True,
    last: LastUpdate | None = None,
) -> Recorder:
    """Runs `__main__.py` with a stack's configuration, handed over as Pulumi does it. `last`: the
    stack's last state, where it is not a new stack."""
    config = {"gcp:project": project} | {
        f"pilot-fleet:{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }
    recorder = Recorder()
    pulumi.runtime.set_mocks(
        recorder, "pilot-fleet", "test", preview=preview, monitor=_Monitor(recorder)
    )

    def program() -> None:
        runpy.run_path(str(ROOT / "__main__.py"))

    with _environment(config) as patch:
        # Requests to Google that do not go through the engine.
        patch.setattr(zone_types, "looker", lambda _: lambda *_: "")
        patch.setattr(accounts, "look", lambda _: True)
        patch.setattr(rendezvous_zone, "newest_copy", lambda _: "registry/1.json")
        if last is not None:
            patch.setattr(last_update, "read", lambda: last)
        pulumi.runtime.test(program)()  # type: ignore[no-untyped-call]
    return recorder
