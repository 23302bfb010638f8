"""The metrics' text by the rules of its format, and the server among strangers."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from startup.node.pressure.kernel_limits import LimitUse
from startup.node.pressure.sampler import Sample
from startup.node.report import metrics
from startup.node.report.metrics import CONNECTIONS, Exporter
from startup.node.report.status import (
    OrdersStatus,
    Published,
    RegistryStatus,
    RollStatus,
    Said,
    ScriptStatus,
    SpecStatus,
    document,
)
from tests.startup import facts
from tests.startup.facts import NOW, OLD

CONTRACT = Path(__file__).parents[4] / "docs/CONTRACT.md"
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? ([^ ]+)")

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: str) -> Series:
    """The samples in `text`, by the rules of the text format 0.0.4: every family's HELP and TYPE
    once and before its samples, its samples together, no sample twice, a line feed at the end."""
    assert text.endswith("\n")
    found: Series = {}
    described: dict[str, str] = {}
    family, helped = "", ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            helped, _, about = line.removeprefix("# HELP ").partition(" ")
            assert about, line
        elif line.startswith("# TYPE "):
            family, _, kind = line.removeprefix("# TYPE ").partition(" ")
            assert family == helped, line
            assert family not in described, f"{family} twice"
            assert kind in ("gauge", "counter"), line
            described[family] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == family, line
            labels = tuple((m[1], m[2]) for m in re.finditer(LABEL, match[2] or ""))
            assert len(dict(labels)) == len(labels), line
            key = (match[1], labels)
            assert key not in found, line
            found[key] = float(match.groups()[-1])
    return found


def series(**changes: Any) -> dict[str, float]:
    """`NAME` or `NAME VALUE...` of each sample of a swarm VM: its value."""
    samples = parsed(metrics.text(document(facts.swarm(**changes))))
    return {
        " ".join([name, *(v for _, v in labels)]): value
        for (name, labels), value in samples.items()
    }


def registry(**changes: Any) -> dict[str, float]:
    samples = parsed(metrics.text(document(facts.rendezvous(**changes))))
    return {name: value for (name, labels), value in samples.items() if not labels}


FULL = Sample(
    total=4 << 30,
    available=3 << 30,
    slice=1 << 30,
    agent_mean=1.9e6,
    agent_limit=20 << 20,
    over=2,
    growth=-5.5,
    grown=700.4,
    leak="leaks",
    asked=8,
    connections=1.25,
    udp_sockets=30,
    benchmarks="frozen",
    limits=(LimitUse(name="memory", used=9, limit=10),),
)


def test_every_metric_of_the_contract_and_no_other() -> None:
    part = CONTRACT.read_text(encoding="utf-8").partition("## Metrics")[2]
    promised = set()
    for line in part.splitlines():
        if line.startswith("| `pilot_"):
            promised |= set(re.findall(r"`(pilot_\w+)", line.split(" | ")[0]))
    swarm = {name for name, _ in parsed(metrics.text(document(facts.swarm(sample=FULL))))}
    assert swarm | set(registry()) == promised


def test_a_swarm_vm() -> None:
    found = series(sample=FULL)
    assert found["pilot_agents wanted"] == 3
    assert found["pilot_agents failed"] == 0
    assert found["pilot_agent_starts_total"] == 3
    assert found[f"pilot_release_info 1.18.0 {OLD}"] == 1
    assert found["pilot_memory_slice_bytes"] == 1 << 30
    assert found["pilot_memory_growth_bytes_per_hour"] == -6
    assert found["pilot_agent_grown_bytes"] == 700
    assert found["pilot_memory_leak"] == 1
    assert found["pilot_bench_frozen"] == 1
    assert found["pilot_agent_connections_mean"] == 1.25
    assert found["pilot_wall_used_ratio memory"] == 0.9
    assert found["pilot_node_start_time_seconds"] == int(NOW - 700)


def test_ghosts_are_those_of_the_vm_and_of_its_project() -> None:
    text = metrics.text(document(facts.swarm(ghosts=("user-data", "project/enable-osconfig"))))
    assert parsed(text)["pilot_ghosts", ()] == 2
    (about,) = re.findall(r"# HELP pilot_ghosts (.*)", text)
    assert "of the VM and of its project" in about


def test_an_unknown_number_is_absent() -> None:
    found = series(sample=Sample())
    for name in (
        "memory_total_bytes",
        "memory_slice_bytes",
        "agent_memory_mean_bytes",
        "agents_over_limit",
        "memory_growth_bytes_per_hour",
        "agent_connections_mean",
        "udp_sockets",
    ):
        assert f"pilot_{name}" not in found


@pytest.mark.parametrize("state", metrics.ROLL_STATES)
def test_one_state_of_the_roll(state: str) -> None:
    found = series(roll=RollStatus(state=state))
    states = {name: v for name, v in found.items() if name.startswith("pilot_roll_state")}
    assert len(states) == 5
    assert [name for name, value in states.items() if value] == [f"pilot_roll_state {state}"]


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({}, "spec_current", 1),
        ({"spec": SpecStatus(sha256="", state="unreachable")}, "spec_current", 0),
        ({}, "script_current", 1),
        ({"project_script": ScriptStatus(expected="", state="foreign")}, "script_current", 0),
        ({"project_script": ScriptStatus(expected="", state="waiting")}, "script_waiting", 1),
        ({"project_script": ScriptStatus(expected="", state="waiting")}, "script_failed", 0),
        ({"project_script": ScriptStatus(expected="", state="failed")}, "script_failed", 1),
        ({"project_script": ScriptStatus(expected="", state="failed")}, "script_waiting", 0),
        ({}, "orders_current", 1),
        ({"orders": OrdersStatus(state="read")}, "orders_current", 1),
        ({"orders": OrdersStatus(state="malformed")}, "orders_current", 0),
        ({}, "held", 0),
        ({"orders": OrdersStatus(hold=True)}, "held", 1),
        ({"ghosts": ("a", "b")}, "ghosts", 2),
        ({}, "last_error_timestamp_seconds", 0),
        ({"last_error": Said(text="x", time=NOW)}, "last_error_timestamp_seconds", int(NOW)),
        ({}, "status_publish_failed", 0),
        ({"published": Published(error="x")}, "status_publish_failed", 1),
        ({"published": Published(time=NOW)}, "status_published_timestamp_seconds", int(NOW)),
        ({"sample": Sample(benchmarks="paused")}, "bench_frozen", 1),
        ({"sample": Sample(benchmarks="running")}, "bench_frozen", 0),
    ],
)
def test_states(changes: dict[str, Any], name: str, value: float) -> None:
    assert series(**changes)[f"pilot_{name}"] == value


def test_the_rendezvous() -> None:
    found = registry()
    assert found["pilot_registry_up"] == 1
    assert found["pilot_registry_online"] == 9500
    assert found["pilot_registry_store_age_seconds"] == 4
    assert found["pilot_registry_copy_age_seconds"] == 290
    assert found["pilot_registry_bucket_copy_age_seconds"] == 285
    assert "pilot_window_size" not in found


def test_a_registry_that_is_down_and_a_clock_that_was_set_back() -> None:
    found = registry(
        registry=RegistryStatus(
            online=None,
            total=None,
            store=1,
            store_time=NOW + 60,
            copies=0,
            newest_copy=None,
            set_aside=("a", "b"),
        )
    )
    assert found["pilot_registry_up"] == 0
    assert "pilot_registry_online" not in found
    assert found["pilot_registry_store_age_seconds"] == 0
    assert "pilot_registry_copy_age_seconds" not in found
    assert found["pilot_registry_set_aside"] == 2


@given(st.text(max_size=40))
def test_any_text_in_a_label(version: str) -> None:
    samples = parsed(metrics.text(document(facts.swarm(version=version))))
    (written,) = [dict(labels) for name, labels in samples if name == "pilot_release_info"]
    plain = re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), written["version"])
    assert plain == version


@pytest.fixture
def exporter() -> Iterator[Exporter]:
    exporter = Exporter(say=print, port=0)
    exporter.start()
    yield exporter
    exporter.close()


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def port_of(exporter: Exporter) -> int:
    until(lambda: exporter.port is not None)
    assert exporter.port is not None
    return exporter.port


def ask(port: int, method: str, path: str) -> tuple[int, str, str]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type") or "", answer.read().decode()
    finally:
        connection.close()


def test_served(exporter: Exporter) -> None:
    port = port_of(exporter)
    assert ask(port, "GET", "/metrics") == (200, metrics.CONTENT_TYPE, "")
    exporter.show(document(facts.swarm()))
    status, _, body = ask(port, "GET", "/metrics?x=y")
    assert status == 200
    assert ("pilot_agents", (("state", "wanted"),)) in parsed(body)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/metrics/", 404), ("POST", "/metrics", 501), ("HEAD", "/", 501)],
)
def test_nothing_else_is_served(exporter: Exporter, method: str, path: str, status: int) -> None:
    assert ask(port_of(exporter), method, path)[0] == status


def test_clients_that_hold_connections(exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that there are, each sending a byte now and then: turned away after a while."""
    monkeypatch.setattr(metrics, "CONNECTION_SECONDS", 1.0)
    port = port_of(exporter)
    exporter.show(document(facts.swarm()))
    held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(CONNECTIONS)]
    try:
        for one in held:
            one.send(b"G")
        # A byte before each of the server's own time-outs: what ends it is its time in all.
        ended, deadline = 0, time.monotonic() + 30
        while ended < CONNECTIONS:
            assert time.monotonic() < deadline, f"{ended} of {CONNECTIONS} turned away"
            ended = 0
            for one in held:
                one.settimeout(0.02)
                try:
                    one.send(b"E")
                    ended += one.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    ended += 1
        assert ask(port, "GET", "/metrics")[0] == 200
    finally:
        for one in held:
            one.close()


def test_a_connection_too_many_is_closed(exporter: Exporter) -> None:
    port = port_of(exporter)
    held = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(CONNECTIONS)]
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as extra:
            assert extra.recv(1) == b""
    finally:
        for one in held:
            one.close()


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "AGAIN", 0.05)
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        said: list[str] = []
        exporter = Exporter(say=said.append, port=port)
        exporter.start()
        until(lambda: bool(said))
    try:
        assert port_of(exporter) == port
        assert len(said) == 1
        assert f"127.0.0.1:{port}" in said[0]
    finally:
        exporter.close()


def test_closing_one_that_never_got_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        exporter = Exporter(say=lambda line: None, port=stranger.getsockname()[1])
        exporter.start()
        exporter.close()
        assert exporter.port is None
