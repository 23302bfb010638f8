"""The computations and pictures of the benchmarks, without a machine."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from tools.bench import chart, meter, report, ways
from tools.bench.report import Fill, FillSample, Full, Idle

UNIT = """\
[Service]
EnvironmentFile=/run/agent.env
Environment=HOME=/var/lib/agents/%i
# ExecStart=/bin/false
ExecStart=/opt/daemon -registry ${PILOT_REGISTRY} -listen :%i -email agent-%i@${VM}.invalid -url ""
"""


def fill(way: str, rate: float, *, delay: float = 0.0, agents: int = 100, failed: int = 0) -> Fill:
    """A fill whose first agent comes after 5 s, and the others at `rate` per second."""
    curve = [(0.0, 0), *((5 + number / rate, number + 1) for number in range(agents))]
    return Fill(
        way=way,
        delay=delay,
        agents=agents,
        failed=failed,
        most_open=15,
        curve=tuple(curve),
        cpu=2.0,
        others=0.1,
    )


def three(node: float, rounds: float, bare: float, *, delay: float = 0.0) -> list[Fill]:
    return [
        fill("pilot-node", node, delay=delay),
        fill("rounds", rounds, delay=delay),
        fill("bare processes", bare, delay=delay),
    ]


def point(seconds: float, online: int, busy: float = 0.0) -> FillSample:
    return FillSample(
        seconds=seconds,
        online=online,
        memory=online * 1_700_000,
        machine=busy + seconds / 10,
        ours=busy,
        pid1=busy / 4,
        node=busy / 8,
        registry=busy / 5,
    )


def whole(*points: FillSample, agents: int = 1000, way: str = "pilot-node") -> Full:
    idle = Idle(
        seconds=60,
        agents=4.8,
        pid1=0.06,
        node=0.3,
        registry=0.9,
        ours=12.0,
        others=0.02,
        stolen=0.0,
    )
    return Full(
        way=way,
        agents=agents,
        failed=0,
        points=points,
        idle=idle,
        memory=1_850_000_000,
        registry_memory=50_000_000,
        pid1_memory=31_000_000,
        node_memory=24_000_000,
        pss=1_520_000.0,
        threads=6.1,
        before=0.02,
        drain=10.0,
    )


def test_the_rate_is_that_of_the_steady_part() -> None:
    # The five seconds before the first are no matter of the way, nor is one that hangs at the end.
    assert fill("pilot-node", 20.0).rate == pytest.approx(20.0)
    assert fill("pilot-node", 20.0).seconds == pytest.approx(5 + 99 / 20)
    late = fill("pilot-node", 20.0)
    late = replace(late, curve=(*late.curve[:-1], (90.0, 100)))
    assert late.rate == pytest.approx(20.0)
    assert late.seconds == 90.0


def test_rounds_have_the_rate_of_their_rounds() -> None:
    # 15 at once every three seconds, of which a look may find a part.
    rounds = [((0.2 + 3.0 * n, 15 * n + 8), (0.3 + 3.0 * n, 15 * (n + 1))) for n in range(20)]
    curve = ((0.0, 0), *(point for both in rounds for point in both))
    seen = replace(fill("rounds", 5.0, agents=300), curve=curve)
    assert seen.rate == pytest.approx(5.0)


def test_one_that_stopped_half_way_has_the_rate_that_it_had() -> None:
    half = fill("pilot-node", 20.0, agents=200)
    half = replace(half, curve=half.curve[:101])
    assert half.rate == pytest.approx(20.0)


def test_all_at_once_has_no_rate() -> None:
    once = Fill(
        way="rounds",
        delay=0.0,
        agents=15,
        failed=0,
        most_open=15,
        curve=((0.0, 0), (0.3, 15)),
        cpu=1.0,
        others=0.0,
    )
    assert math.isnan(once.rate)


@pytest.mark.parametrize(
    ("node", "delay", "short"),
    [(20.0, 0.6, False), (19.5, 0.6, True), (60.5, 0.0, False), (59.5, 0.0, True)],
)
def test_what_pilot_node_has_to_reach(node: float, delay: float, short: bool) -> None:
    found = report.problems(three(node, 5.0, 139.0, delay=delay))
    assert bool(found) is short, found


def test_a_failed_agent_is_a_problem_however_fast_the_others_were() -> None:
    fills = three(100.0, 5.0, 139.0)
    fills[1] = fill("rounds", 5.0, failed=1)
    assert report.problems(fills) == ["rounds, prompt registry: 1 of 100 failed"]


def test_the_gap_to_bare_processes_is_reported_and_binds_nobody() -> None:
    _, gap = report.ratios(three(100.0, 5.0, 200.0))
    assert gap.value == pytest.approx(0.5)
    assert gap.holds
    assert "pilot-node / bare processes, prompt registry: **0.5**" in report.speed_table(
        three(100.0, 5.0, 200.0)
    )


def test_the_table_of_a_full_vm() -> None:
    text = report.full_table(whole(point(0, 0), point(20, 600, 20.0), point(40, 1000, 40.0)))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    found = {row[0]: row[1] for row in rows}
    assert found["time to full"] == "40 s"
    assert found["memory per agent, machine-wide"] == "1.85 MB"
    assert found["… without the registry's process"] == "1.80 MB"
    # 4.8 s of CPU in a minute, of a thousand agents.
    assert found["idle CPU per agent"] == "0.080 ms/s"
    assert found["PID 1: CPU per start"] == "10.0 ms"
    assert found["CPU of everything, per start"] == "40.0 ms"
    assert found["others on the machine: CPUs, filling"] == "0.10"
    assert found["pilot-node: CPU when idle"] == "0.50% of one"


def test_a_full_vm_is_compared_with_the_same_agents_as_bare_processes() -> None:
    # The last 500 starts cost PID 1 three times as much as the first 500.
    grows = [point(0, 0), point(20, 500, 20.0), point(60, 1000, 80.0)]
    node = whole(*grows)
    bare = replace(
        whole(point(0, 0), point(30, 1000, 40.0), way="bare processes"),
        memory=1_480_000_000,
        drain=4.0,
    )
    found = {ratio.name: ratio.value for ratio in report.full_ratios(node, bare)}
    assert found["time to full"] == pytest.approx(2.0)
    assert found["PID 1 per start, the last 500 / the first 500 of pilot-node"] == pytest.approx(3)
    assert found["drain"] == pytest.approx(2.5)
    assert found["memory per agent, machine-wide"] == pytest.approx(1.25)
    # Everything takes 12 s of CPU, the bare daemons 4.8 s.
    assert found["idle CPU of everything / of the bare daemons alone"] == pytest.approx(2.5)
    text = report.full_table(node, bare)
    assert "- drain: **2.50**" in text
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    cells = {row[0]: row[1:] for row in rows if len(row) == 4}
    assert cells["1,000 agents"] == ["pilot-node", "bare processes", "aim"]
    assert cells["drain"] == ["10.0 s", "4.0 s", ""]
    # Neither starts a bare process.
    assert cells["PID 1: CPU per start"] == ["20.0 ms", "", ""]
    assert cells["pilot-node: CPU when idle"] == ["0.50% of one", "", "< 1 %"]


def test_the_document_keeps_what_is_around_the_measured() -> None:
    before = f"# Scale\nwords\n{report.BEGIN}\nold\n{report.END}\nmore\n"
    after = report.into(before, "new\n")
    assert after == f"# Scale\nwords\n{report.BEGIN}\nnew\n{report.END}\nmore\n"
    assert report.into(after, "new") == after
    with pytest.raises(ValueError, match="has no lines"):
        report.into("# Scale\n", "new")


def test_the_picture_shows_every_line_within_its_frame() -> None:
    full = whole(*(point(t, min(1000, t * 25), t * 1.5) for t in range(90)))
    panels = report.panels(full)
    root = ET.fromstring(chart.svg("Title & more", "5 < 6", panels))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    lines = root.findall("{*}polyline")
    assert len(lines) == sum(len(panel.lines) for panel in panels) == 6
    for line in lines:
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    texts = {text.text for text in root.findall("{*}text")}
    assert {"Title & more", "5 < 6", "agents registered", "PID 1"} <= texts


def test_the_bare_way_starts_what_the_unit_says() -> None:
    read = {"/run/agent.env": 'PILOT_REGISTRY="10.0.0.1:9000"\nVM="swarm-1"\n# no\nA="b \\" c"\n'}
    words, environment = ways.command(UNIT, 10007, read.__getitem__)
    assert words == [
        *("/opt/daemon", "-registry", "10.0.0.1:9000", "-listen", ":10007"),
        *("-email", "agent-10007@swarm-1.invalid", "-url", ""),
    ]
    assert environment["HOME"] == "/var/lib/agents/10007"
    assert environment["A"] == 'b " c'


def test_a_machine_is_read_from_proc() -> None:
    stat = "cpu  100 50 200 9999 77 3 7 40 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    seen = meter.machine(stat, "MemTotal: 2000 kB\nMemAvailable:    1000 kB\n")
    assert seen.busy == pytest.approx(360 * meter._TICK_S)
    assert seen.stolen == pytest.approx(40 * meter._TICK_S)
    assert seen.available == 1_024_000
