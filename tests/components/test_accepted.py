"""A VM accepts every spec that the program makes, for every configuration, without an engine."""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components import spec_tables
from components.config import FleetConfig
from components.config_parse import parse_fleet
from components.config_reader import ConfigError
from components.machine_types import look_up
from components.spec import Binary, metadata, rendezvous_spec, swarm_spec
from startup.node.desired import fields
from startup.node.desired import spec as on_vm
from startup.node.setup import limits
from tests.components.fleet import changed

SHA = "ab" * 32
# The least memory that a guest sees of what is sold.
GUEST = 0.97


def rendered(config: FleetConfig) -> dict[str, tuple[float, dict[str, Any]]]:
    """The memory, MiB, and the spec of each VM, by name."""

    def binary(name: str) -> Binary:
        return Binary(name=name, version="1", path="p", sha256=SHA, is_built=True)

    found = {
        config.rendezvous.name: (
            config.rendezvous.machine.memory_mb * GUEST,
            rendezvous_spec(config, rendezvous=binary("pilot-rendezvous"), script_sha256=SHA),
        )
    }
    for vm in config.swarm:
        document = swarm_spec(config, vm, daemon=binary("pilot-daemon"), script_sha256=SHA)
        found[vm.name] = (vm.machine.memory_mb * GUEST, document)
    return found


def vm_accepts(memory_mb: float, document: Mapping[str, Any]) -> None:
    """As pilot-node does it (apply.check), on a machine of that memory. Raises what it raises."""
    spec = on_vm.parse(metadata(document)["pilot-spec"])
    machine = limits.KernelFacts(ram=int(memory_mb * 2**20), page=4096)
    limits.check_agents(spec)
    limits.slice_memory(machine, spec)


def refused(values: dict[str, Any]) -> list[str]:
    """Paths of the problems that the program has; where there are none every VM takes its spec."""
    try:
        config = parse_fleet(values, project="project-1")
    except ConfigError as error:
        return [problem.path for problem in error.problems]
    for memory_mb, document in rendered(config).values():
        vm_accepts(memory_mb, document)
    return []


def _fleet() -> dict[str, Any]:
    """The seed's fleet with one more VM, that is the canary and says all that a VM's line can."""
    vm = {
        "name": "canary",
        "machineType": "e2-custom-2-2048",
        "agents": 10,
        "agentMb": 4,
        "reserveMb": 512,
        "activeConnections": 5,
        "env": {"GOGC": "50"},
        "release": {"version": "1.19.0", "daemon": "d", "sha256": {"daemon": SHA}},
        "diskGb": 20,
        "bootDiskGb": 20,
    }
    found = changed(
        agentMb=10,
        reserveMb=3000,
        basePort=10_000,
        window=15,
        programStagger=120,
        roll={"batch": 500, "watchSeconds": 60, "auto": True},
        subnetCidr="10.10.0.0/20",
        endpoints={"storage": "https://s.example.com", "secrets": "https://s.example.com:1"},
        tokens={"admin": "a" * 16},
        bucket="bucket-1",
    )
    found["swarm"].append(vm)
    return found


FLEET = _fleet()


def at(values: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """`values` with another value at `path`; what is there stays as it is."""
    step, *rest = path
    found = copy.copy(values)
    found[step] = at(values[step], tuple(rest), value) if rest else value
    return found


def there(values: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        values = values[step]
    return values


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    elif path[-1] != "machineType":
        yield path


LEAVES = sorted(leaves(FLEET), key=str)
EDGES = sorted({bound for pair in fields.NUMBERS.values() for bound in pair} | {100, 2000, 11_483})
LABELS = st.from_regex(r"[-a-z0-9_.]{1,70}", fullmatch=True)
HOSTS = st.one_of(
    LABELS,
    st.lists(LABELS, min_size=1, max_size=9).map(".".join),
    st.sampled_from(["127.0.0.1", "10.0.0.1", "[::1]", "8.8.8.8", "a" * 64, f"{'a' * 63}." * 4]),
)
URLS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["https://", "http://", "https:/", ""]),
    HOSTS,
    st.sampled_from(["", ":", ":0", ":1", ":443", ":65535", ":65536", ":99999", ":00443", ":x"]),
)
VALUES = st.one_of(
    st.sampled_from(EDGES).flatmap(lambda edge: st.integers(edge - 1, edge + 1)),
    st.integers(0, 70_000),
    st.sampled_from([True, False, None, "", 1.0, 0.5, "on", "off", "64MiB", [], {}]),
    URLS,
    LABELS,
    st.from_regex(r"[0-9a-z][-+._0-9A-Za-z]{0,65}", fullmatch=True),
    st.builds("{}.{}.0.0/{}".format, st.integers(0, 255), st.integers(0, 255), st.integers(7, 30)),
    st.dictionaries(
        st.sampled_from([*fields.GO_NUMBERS, "GODEBUG", "GOMEMLIMIT", "HOME", "A", "LD_X"]),
        st.sampled_from(["1", "1024", "1025", "off", "64MiB", "sbrk=1", "", "x y", "\t", "\ud800"])
        | st.text(max_size=4),
    ),
)


@settings(max_examples=1500, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(LEAVES), VALUES), min_size=1, max_size=3))
@example(changes=[(("roll", "batch"), 70_000)])
@example(changes=[(("endpoints", "storage"), "https://-x.googleapis.com")])
def test_a_vm_accepts_every_spec_of_the_program(
    changes: list[tuple[tuple[str | int, ...], Any]],
) -> None:
    values = FLEET
    for path, value in changes:
        values = at(values, path, value)
    refused(values)


def test_each_number_at_its_edges() -> None:
    """Without the luck of the draw: each number of a stack file at, below and above each edge."""
    numbers = [path for path in LEAVES if type(there(FLEET, path)) is int]
    verdicts = [
        not refused(at(FLEET, path, value))
        for path in numbers
        for edge in EDGES
        for value in (edge - 1, edge, edge + 1)
    ]
    # So many that it is neither a test of refusals only nor one of none.
    assert len(verdicts) / 5 < sum(verdicts) < len(verdicts) * 4 / 5


NO_HOSTS = [
    "-x.googleapis.com",
    "x-.googleapis.com",
    "a_b.googleapis.com",
    "a..b",
    "[::1]",
    "",
    ".",
]


@pytest.mark.parametrize("key", ["storage", "secrets"])
@pytest.mark.parametrize(
    "url",
    [
        *(f"https://{host}" for host in NO_HOSTS),
        f"https://{'a.' * 126}ab",
        f"https://{'a' * 64}.example.com",
        "https://x:",
        "https://x:0",
        "https://x:65536",
        "https://x.",
        "https://x?",
        "https://bücher.example",
    ],
)
def test_a_host_that_cannot_be_looked_up(key: str, url: str) -> None:
    assert refused(FLEET | {"endpoints": {key: url}}) == [f"pilot-fleet:endpoints.{key}"]


def test_hosts_that_can() -> None:
    longest = f"{'a' * 63}." * 3 + "a" * 61
    for host in ("x", "10.0.0.1", "s.example.com:65535", longest, "a-b.c"):
        assert refused(FLEET | {"endpoints": {"storage": f"https://{host}"}}) == []


def test_a_batch_of_more_than_ports() -> None:
    assert refused(FLEET | {"roll": {"batch": 65_535}}) == []
    assert refused(FLEET | {"roll": {"batch": 65_536}}) == ["pilot-fleet:roll.batch"]


def test_more_agents_than_one_rendezvous_is_for() -> None:
    def big(*counts: int) -> dict[str, Any]:
        vms = [
            {"name": f"s{i}", "machineType": "n2d-highcpu-224", "agents": count}
            for i, count in enumerate(counts)
        ]
        return changed(swarm=vms, rendezvous={"name": "r", "machineType": "m2-ultramem-208"})

    assert refused(big(*[10_000] * 100)) == []
    assert refused(big(*[10_000] * 100, 1)) == ["pilot-fleet:swarm"]


@pytest.mark.parametrize("machine", ["e2-micro", "e2-medium", "e2-standard-16"])
@pytest.mark.parametrize("agents", [0, 1])
def test_a_reserve_that_leaves_no_guest_memory(machine: str, agents: int) -> None:
    """Each reserve around the guest's memory is refused, or leaves some."""
    sold = look_up(machine)
    assert sold
    path = "pilot-fleet:swarm[4].reserveMb"
    verdicts = []
    for percent in range(80, 101):
        vm = {
            "name": "a",
            "machineType": machine,
            "agents": agents,
            "reserveMb": sold.memory_mb * percent // 100,
        }
        verdicts.append(refused(FLEET | {"swarm": [*FLEET["swarm"], vm]}))
    assert verdicts[0] == []
    assert verdicts[-4:] == [[path]] * 4
    found = refused(
        FLEET
        | {
            "rendezvous": {"name": "r", "machineType": machine},
            "reserveMb": sold.memory_mb * 97 // 100,
        }
    )
    assert "pilot-fleet:rendezvous.machineType" in found


def test_every_field_is_described() -> None:
    """Rendered specs and fields.py have the same fields."""

    def paths(value: Mapping[str, Any], before: str = "") -> Iterator[str]:
        for key, inner in value.items():
            if isinstance(inner, dict) and key != "environment":
                yield from paths(inner, f"{before}{key}.")
            else:
                yield before + key

    tokens = dict.fromkeys(fields.TOKENS, "a" * 16)
    config = parse_fleet(FLEET | {"tokens": tokens}, project="project-1")
    found = {path for _, document in rendered(config).values() for path in paths(document)}
    assert found == {*fields.NUMBERS, *fields.TEXTS, *fields.FLAGS, "environment"}


def test_the_spec_tables_are_data() -> None:
    """Literals only, which the program reads as a VM imports them."""
    tree = ast.parse(spec_tables.FILE.read_text(encoding="utf-8"))
    names = []
    for statement in tree.body[1:]:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        (target,) = statement.targets
        assert isinstance(target, ast.Name)
        names.append(target.id)
    assert {name: spec_tables.table(name) for name in names} == {
        name: getattr(fields, name) for name in names
    }
    assert json.dumps(spec_tables.table("NUMBERS"))
