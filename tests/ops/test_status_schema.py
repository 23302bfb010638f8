"""docs/status.schema.json describes what `status --json` prints: every key, and no other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.components.fleet import ROOT
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.simulated import RENDEZVOUS, Simulated

SCHEMA = json.loads((ROOT / "docs" / "status.schema.json").read_text(encoding="utf-8"))
_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda found: isinstance(found, str),
    "boolean": lambda found: isinstance(found, bool),
    "integer": lambda found: isinstance(found, int) and not isinstance(found, bool),
    "number": lambda found: isinstance(found, int | float) and not isinstance(found, bool),
    "null": lambda found: found is None,
    "array": lambda found: isinstance(found, list),
    "object": lambda found: isinstance(found, dict),
}
# The words of JSON Schema that this page uses; another one would be judged by nobody.
_JUDGED = {"type", "properties", "required", "items", "minimum", "$ref"}
_SAID = {"$schema", "title", "description", "$defs"}


def problems(schema: Mapping[str, Any], found: Any, where: str = "$") -> Iterator[str]:
    """What in `found` is not as the schema says, each with its path."""
    if strange := set(schema) - _JUDGED - _SAID:
        yield f"{where}: the schema says {sorted(strange)}"
    if "$ref" in schema:
        yield from problems(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], found, where)
        return
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(_TYPES[each](found) for each in types):
        yield f"{where}: {found!r} is no {' or '.join(types)}"
    elif isinstance(found, dict):
        yield from (f"{where}.{key} lacks" for key in schema["required"] if key not in found)
        for key, value in found.items():
            if key in schema["properties"]:
                yield from problems(schema["properties"][key], value, f"{where}.{key}")
            else:
                # Allowed to a reader, who passes over it, and not to us.
                yield f"{where}.{key} is in no schema"
    elif isinstance(found, list):
        for at, each in enumerate(found):
            yield from problems(schema["items"], each, f"{where}[{at}]")
    elif found is not None and "minimum" in schema and found < schema["minimum"]:
        yield f"{where}: {found} is below {schema['minimum']}"


def described(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in (schema, *schema["$defs"].values()):
        for name, each in part["properties"].items():
            yield name, each.get("description", "")


def test_every_key_is_explained() -> None:
    for name, text in described(SCHEMA):
        assert text.endswith("."), name


def test_a_whole_fleet_and_one_in_trouble_print_what_the_schema_says(
    ops: Ops, simulated: Simulated, stats: str
) -> None:
    looks = [ops("status", "--json"), ops("--dashboard", stats, "status", "--json")]
    assert looks[0].json["rows"][0]["disk_size"] is not None
    assert looks[1].json["networks"]
    simulated.nodes["swarm-1"].changes["ghosts"] = ("startup-script",)
    simulated.tick()
    simulated.client.do("POST", f"{ZONE}/instances/{RENDEZVOUS}/stop")
    looks.append(ops("status", "--json"))
    for each in looks:
        assert list(problems(SCHEMA, each.json)) == []
    assert [each.json["well"] for each in looks] == [each.code == 0 for each in looks]
    notes = [each["vm"] for each in looks[2].json["rows"] if each["notes"]]
    assert "swarm-1" in notes


def test_a_fleet_of_which_nothing_is_known_prints_it_too(ops: Ops, simulated: Simulated) -> None:
    for name in (*simulated.nodes, RENDEZVOUS):
        simulated.client.do("POST", f"{ZONE}/instances/{name}/stop")
    found = ops("status", "--json")
    assert found.json["online"] is None
    assert list(problems(SCHEMA, found.json)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("online"), "$.online lacks"),
        (lambda found: found.update(new=1), "$.new is in no schema"),
        (lambda found: found.update(wanted="5"), "$.wanted: '5' is no integer"),
        (lambda found: found.update(wanted=True), "$.wanted: True is no integer"),
        (lambda found: found["rows"][0].update(failed=-1), "$.rows[0].failed: -1 is below 0"),
        (lambda found: found["rows"][0]["notes"].append(None), "$.rows[0].notes[0]: None is no"),
    ],
)
def test_this_test_can_fail(
    ops: Ops, simulated: Simulated, change: Callable[[Any], Any], said: str
) -> None:
    found = copy.deepcopy(ops("status", "--json").json)
    change(found)
    (problem,) = problems(SCHEMA, found)
    assert problem.startswith(said)
