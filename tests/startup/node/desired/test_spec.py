"""pilot-spec: what is read, and every problem with its path, all at once."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from startup.node.desired.json_reader import SpecError
from startup.node.desired.spec import (
    RESERVED_VARIABLES,
    Binary,
    RendezvousSpec,
    Roll,
    ScriptSpec,
    SwarmSpec,
    expected_script,
    parse,
)
from tests.startup import specs
from tests.startup.specs import SHA


def problems(spec: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        parse(spec if isinstance(spec, str | bytes) else json.dumps(spec))
    return list(caught.value.problems)


def changed(path: str, value: Any, spec: dict[str, Any] | None = None) -> dict[str, Any]:
    """The spec with `path` (dotted) set to `value`, or without it when `value` is `...`."""
    spec = spec or specs.swarm()
    *parents, last = path.split(".")
    target = spec
    for name in parents:
        target = target[name]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return spec


def test_a_swarm_spec() -> None:
    spec = parse(specs.text(specs.swarm(environment={"GOGC": "50"})))
    assert spec == SwarmSpec(
        name="swarm-1",
        role="swarm",
        version="1.18.0",
        binary=Binary(name="pilot-daemon", object=f"releases/{SHA}/pilot-daemon", sha256=SHA),
        environment={"GOGC": "50"},
        bucket="fleet-bucket",
        storage="https://storage.googleapis.com",
        reserve_mb=1000,
        script=ScriptSpec(sha256=SHA, after_seconds=240),
        agents=30,
        base_port=10000,
        registry="10.10.0.2:9000",
        beacon="10.10.0.2:9001",
        window=15,
        roll=Roll(auto=True, batch=500, watch_seconds=60),
        agent_mb=10,
        connection_mb=4,
        active_connections=3,
    )
    assert spec.ports == range(10001, 10031)


def test_names_that_can_be_looked_up() -> None:
    for host in ("h", "a" * 63 + ".b", "storage.googleapis.com", "10.0.0.1", "h:65535"):
        changes = {"endpoints": {"storage": f"http://{host}"}}
        assert parse(specs.text(specs.swarm(**changes))).storage == f"http://{host}"


def test_a_rendezvous_spec() -> None:
    spec = parse(specs.text(specs.rendezvous()))
    assert isinstance(spec, RendezvousSpec)
    assert spec.binary.name == "pilot-rendezvous"
    assert (spec.registry_port, spec.beacon_port, spec.dashboard_port) == (9000, 9001, 3000)
    assert spec.subnet == "10.10.0.0/20"
    assert spec.secrets == {"admin": "projects/p/secrets/pilot-admin/versions/latest"}
    assert spec.secrets_endpoint == specs.SECRETS


def test_all_problems_at_once() -> None:
    spec = specs.swarm(agents=True, window=0, registry="10.10.0.2", bucket=7)
    del spec["roll"]["batch"]
    assert sorted(problems(spec)) == [
        "agents: must be an integer, is true",
        "bucket: must be a bucket's name, is 7",
        'registry: must be HOST:PORT, is "10.10.0.2"',
        "roll.batch: is missing",
        "window: must be 1 to 1000, is 0",
    ]


def test_unknown_fields_of_a_newer_program_are_ignored() -> None:
    for make in (specs.swarm, specs.rendezvous):
        known, spec = parse(specs.text(make())), make()
        # A field in each object that there is, and an object.
        parts = [path for path in ("", *_paths(spec)) if isinstance(_at(spec, path), dict)]
        parts = [path for path in parts if path != "environment"]
        for part in parts:
            _at(spec, part)["later"] = {"a": 1}
        paths = {f"{part}.later".lstrip(".") for part in parts}
        found = parse(json.dumps(spec))
        assert {*found.ignored} == paths
        assert replace(found, ignored=()) == known
        # What its program says must not be passed over is refused by name, and only that.
        for path in paths:
            assert problems({**spec, "requires": [path, "agents", "not.there"]}) == [
                f"{path}: is not known to this version, and must not be ignored"
            ]
        (problem,) = problems({**spec, "requires": {"later": 1}})
        assert problem.startswith("requires: must be a list of fields")


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("schema", 2, "schema: is 2, this script knows 1: run `pulumi up`"),
        ("role", "agent", 'role: must be rendezvous or swarm, is "agent"'),
        ("role", ..., "role: is missing"),
        ("name", "Swarm_1", 'name: must be an instance\'s name, is "Swarm_1"'),
        ("agents", -1, "agents: must be 0 to 1000000, is -1"),
        ("agents", 1.5, "agents: must be an integer, is 1.5"),
        ("agents", 60000, "agents: 60000 from port 10001 pass 65535, the last port"),
        ("basePort", 80, "basePort: must be 1023 to 65534, is 80"),
        ("registry", "10.10.0.2:0", "registry: has no such port: '10.10.0.2:0'"),
        ("registry", "a b:9000", 'registry: must be HOST:PORT, is "a b:9000"'),
        ("release", None, "release: is null: this binary was not built when the VM was declared"),
        (
            "release.daemon",
            None,
            "release.daemon: is null: this binary was not built when the VM was declared",
        ),
        ("release.daemon.sha256", "ab", 'release.daemon.sha256: must be 64 hex digits, is "ab"'),
        (
            "release.daemon.object",
            "releases/x/pilot-daemon",
            (
                "release.daemon.object: is 'releases/x/pilot-daemon', must be "
                f"'releases/{SHA}/pilot-daemon'"
            ),
        ),
        ("roll", [], "roll: must be an object, is []"),
        ("roll.auto", "yes", 'roll.auto: must be true or false, is "yes"'),
        ("environment.A B", "x", "environment.'A B': is not the name of an environment variable"),
        ("environment.HOME", "/", "environment.HOME: is set by the unit itself"),
        (
            "environment.PILOT_AGENT_NEXT",
            "x",
            "environment.PILOT_AGENT_NEXT: is set by the unit itself",
        ),
        (
            "environment.LD_PRELOAD",
            "/x.so",
            "environment.LD_PRELOAD: is obeyed by the loader of every program: not taken",
        ),
        (
            "endpoints.storage",
            "http://h:99999",
            "endpoints.storage: has no such port: 'http://h:99999'",
        ),
        (
            "endpoints.storage",
            "http://a..b",
            ('endpoints.storage: must be http(s)://HOST[:PORT] without a path, is "http://a..b"'),
        ),
        ("beacon", "a" * 64 + ":9001", f'beacon: must be HOST:PORT, is "{"a" * 56}...'),
        ("beacon", "a.-b:9001", 'beacon: must be HOST:PORT, is "a.-b:9001"'),
        ("environment.A", 1, "environment.A: must be a string, is 1"),
        (
            "environment.A",
            "x\nPILOT_AGENT_REGISTRY=evil",
            "environment.A: holds a control character (a line break, NUL, ...)",
        ),
        (
            "environment.A",
            "x\0",
            "environment.A: holds a control character (a line break, NUL, ...)",
        ),
        ("environment.A", "\ud800", "environment.A: is not valid Unicode (a lone surrogate)"),
        (
            "endpoints.storage",
            "http://127.0.0.1/x",
            (
                "endpoints.storage: must be http(s)://HOST[:PORT] without a path, is "
                '"http://127.0.0.1/x"'
            ),
        ),
    ],
)
def test_a_problem_and_its_path(path: str, value: Any, problem: str) -> None:
    assert problems(changed(path, value)) == [problem]


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("subnet", "10.10.0.1/20", "subnet: must be a CIDR such as 10.10.0.0/20: "),
        ("ports.dashboard", 9000, "ports.dashboard: is 9000, the registry's port as well"),
        ("ports.beacon", 0, "ports.beacon: must be 1 to 65535, is 0"),
        ("secrets.admin", "s3cret", "secrets.admin: must be projects/P/secrets/NAME/versions/V"),
        ("endpoints.secrets", "h", "endpoints.secrets: must be http(s)://HOST[:PORT] without"),
    ],
)
def test_a_problem_of_a_rendezvous(path: str, value: Any, problem: str) -> None:
    found = problems(changed(path, value, specs.rendezvous()))
    assert len(found) == 1
    assert found[0].startswith(problem)


GO = [
    {"GOGC": "50", "GOMAXPROCS": "2", "GOMEMLIMIT": "64MiB", "GODEBUG": "madvdontneed=1"},
    {"GOGC": "1", "GOMAXPROCS": "1024", "GOMEMLIMIT": "16777216"},
    {"GOGC": "10000", "GOMEMLIMIT": f"{2**63 - 1}B", "GODEBUG": "cgocheck=0,fips140=on"},
    {"GOGC": "off", "GOMEMLIMIT": "1GiB"},
    {"GOMEMLIMIT": "off"},
]
NO_GO = [
    ("GOGC", "0", {}, "is not percent as 50, 1 to 10000"),
    ("GOGC", "10001", {}, "is not percent as 50"),
    ("GOGC", "-1", {}, "is not percent as 50"),
    ("GOGC", "\u0665", {}, "is not percent as 50"),
    ("GOGC", "off", {}, "is off without a GOMEMLIMIT"),
    ("GOGC", "off", {"GOMEMLIMIT": "off"}, "is off without a GOMEMLIMIT"),
    ("GOMAXPROCS", "0", {}, "is not a number of processors, 1 to 1024"),
    ("GOMAXPROCS", "1025", {}, "is not a number of processors"),
    ("GOMAXPROCS", "9" * 5000, {}, "is not a number of processors"),
    ("GOMEMLIMIT", "0", {}, "is no limit"),
    ("GOMEMLIMIT", "1KiB", {}, "is no limit"),
    ("GOMEMLIMIT", "64M", {}, "is no limit"),
    ("GOMEMLIMIT", str(2**63), {}, "is no limit"),
    ("GOMEMLIMIT", "8388608TiB", {}, "is no limit"),
    ("GOMEMLIMIT", "9" * 5000, {}, "is no limit"),
    ("GODEBUG", "gctrace=1,cgocheck=2", {}, "cgocheck must be 0 or 1"),
    ("GODEBUG", "fips140=yes", {}, "fips140 must be off or on or only or debug"),
    *(
        ("GODEBUG", f"{name}=1", {}, f"{name} must be left out")
        for name in (
            "clobberfree",
            "efence",
            "gccheckmark",
            "gcstoptheworld",
            "sbrk",
            "schedtrace",
        )
    ),
]


@pytest.mark.parametrize("role", [specs.swarm, specs.rendezvous])
def test_variables_of_gos_runtime(role: Callable[..., dict[str, Any]]) -> None:
    for environment in GO:
        assert parse(specs.text(role(environment=environment))).environment == environment
    for name, value, more, problem in NO_GO:
        (found,) = problems(role(environment={name: value, **more}))
        assert found.startswith(f"environment.{name}: "), value[:60]
        assert problem in found
        assert len(found) < 200


def test_an_almost_too_deep_document_is_no_spec() -> None:
    """Shallow enough to be read, too deep to be shown: a problem all the same."""
    spec = specs.text(specs.swarm(registry="HERE"))
    # What other tests left to be collected has finalizers, and so deep they fail as well.
    gc.collect()
    gc.disable()
    try:
        for depth in range(1, sys.getrecursionlimit() + 20):
            (found,) = problems(spec.replace('"HERE"', "[" * depth + "]" * depth))
            assert len(found) < 200
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "pilot-spec: not JSON: "),
        ("{", "pilot-spec: not JSON: "),
        (b"\xff\xfe\xfa", "pilot-spec: not JSON: "),
        ("[" * 100_000, "pilot-spec: not JSON: "),
        ('{"agents": NaN}', "pilot-spec: not JSON: NaN is not a JSON value"),
        ('{"a": 1, "a": 2}', "pilot-spec: not JSON: given twice: 'a'"),
        ("[]", "pilot-spec: must be an object, is []"),
        ("null", "pilot-spec: must be an object, is null"),
    ],
)
def test_documents_that_are_no_spec(text: str | bytes, problem: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(problem)


# A program older than these fields has specs without them.
OPTIONAL = {"secrets", "secrets.admin", "endpoints.secrets", "script.afterSeconds", "uploadCopies"}


def test_fields_that_an_older_program_lacks() -> None:
    spec = specs.rendezvous()
    del spec["secrets"], spec["endpoints"]["secrets"]
    read = parse(json.dumps(spec))
    assert isinstance(read, RendezvousSpec)
    assert (read.secrets, read.secrets_endpoint) == ({}, specs.SECRETS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (specs.text(specs.swarm()), (SHA, 240)),
        (specs.text(specs.swarm(schema=7, later={"field": 1})), (SHA, 240)),
        (specs.text(specs.swarm(script={"sha256": SHA})), (SHA, 0)),
        # A turn that makes no sense holds up nothing.
        (specs.text(specs.swarm(script={"sha256": SHA, "afterSeconds": "2 min"})), (SHA, 0)),
        (specs.text(specs.swarm(script={"sha256": SHA, "afterSeconds": True})), (SHA, 0)),
        (specs.text(specs.swarm(script={"sha256": SHA, "afterSeconds": 1 << 40})), (SHA, 0)),
        ('{"script": {"sha256": "ab"}}', ("", 0)),
        ('{"script": {"sha256": 7}}', ("", 0)),
        ('{"script": []}', ("", 0)),
        ('{"script": ["sha256"]}', ("", 0)),
        ("[" * 100_000, ("", 0)),
        ("{", ("", 0)),
        (b"\xff", ("", 0)),
    ],
)
def test_the_script_that_a_spec_expects_is_read_from_any(
    text: str | bytes, expected: tuple[str, int]
) -> None:
    found = expected_script(text)
    assert (found.sha256, found.after_seconds) == expected


def test_a_spec_of_a_program_without_turns_has_none() -> None:
    for make in (specs.swarm, specs.rendezvous):
        assert parse(specs.text(make(script={"sha256": SHA}))).script == ScriptSpec(sha256=SHA)


def test_every_field_is_read() -> None:
    """Without it, or with another type, each field of both roles is a problem of its path."""
    for make in (specs.swarm, specs.rendezvous):
        for path in _paths(make()):
            if path not in OPTIONAL:
                assert any(p.startswith(path) for p in problems(changed(path, ..., make()))), path
            assert any(p.startswith(path) for p in problems(changed(path, [1], make()))), path


def _at(spec: dict[str, Any], path: str) -> Any:
    found: Any = spec
    for name in filter(None, path.split(".")):
        found = found[name]
    return found


def _paths(spec: dict[str, Any], before: str = "") -> list[str]:
    found = []
    for name, value in spec.items():
        found.append(before + name)
        if isinstance(value, dict):
            found += _paths(value, f"{before}{name}.")
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(_paths(specs.swarm())), json_values)
def test_any_value_anywhere_is_a_spec_or_a_spec_error(path: str, value: Any) -> None:
    try:
        spec = parse(json.dumps(changed(path, value)))
    except SpecError:
        # Its problems have tests of their own.
        return
    else:
        assert not any(map(RESERVED_VARIABLES.fullmatch, spec.environment))
        # Whatever is taken for a host can be looked up: no label that is none.
        urlsplit(spec.storage).netloc.encode("idna")


@given(st.text() | st.binary())
def test_any_text_is_a_spec_or_a_spec_error(text: str | bytes) -> None:
    with pytest.raises(SpecError):
        parse(text)
