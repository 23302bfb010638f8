"""`live`: its screens, on recorded statuses and on the simulated fleet."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from textual.pilot import Pilot

from lab.cloud.web import Request, Response
from ops import fleet as fleets
from ops import holds, live_rows, plan, status
from ops.errors import DeniedError, OpsError, UnreachableError
from ops.fleet import Fleet
from ops.google import Cloud
from ops.live import LiveApp
from ops.live_screens import AskScreen
from ops.looks import FleetLooks
from ops.watch import Limits
from startup.node.report.status import RollStatus
from tests.components.fleet import ROOT
from tests.ops import live_picture
from tests.ops.conftest import Ops
from tests.ops.recorded import (
    NOW,
    busy,
    cloud,
    drive,
    fleet,
    held,
    live,
    looks,
    picture,
    rendezvous_vm,
    screen,
    swarm_vm,
    until,
)
from tests.ops.simulated import BUCKET, NEW, RENDEZVOUS, Simulated, rolling

NARROW = """\
production: swarm in vulture-vision-cloud       9,180 of 9,500 online  20:26:40Z
VM               state      agents         wanted running failed   memory left
pilot-rendezvous serving                                          4.0 GiB  75%
swarm-1          whole      ██████████████  3,000   3,000      0 25.0 GiB  61%
swarm-2          rolling    ██████████████  5,000   5,000      0 49.0 GiB  62%
swarm-3          converging ███████████▒!·  1,500   1,180     12 13.0 GiB  59%
─agents online, the last 0 s, at least 9,180────────────────────────────────────
                                                                               ▇
                                                                               █
─events─────────────────────────────────────────────────────────────────────────
20:26:40Z ALERT swarm-3/failed: 12 agents fail
"""
NARROW_END = """\
─orders that stand──────────────────────────────────────────────────────────────
swarm-2: roll to 1.19.0 watching, 1,500 of 5,000
d drain u undrain r restart p pause g roll go x reject q quit
"""
ONE_VM = """\
swarm-3: converging, 1,180 of 1,500 agents run                         20:26:40Z
1.18.0 on e2-standard-8 in us-central1-a, window 8 of 15
12 agents fail: port 11193, no socket after 60 s
window: a start has failed

agents in trouble
port 11193: no socket after 60 s, 4 times, again in 2 min
"""


def shown(found: Fleet, size: tuple[int, int]) -> list[str]:
    """The screen after a look that finds this fleet."""
    app, lines = live(looks([found])), list[str]()

    async def steps(pilot: Pilot[int]) -> None:
        lines.extend(screen(app))

    drive(app, steps, size)
    return lines


def test_the_pictures_in_the_documents_are_what_the_screen_shows() -> None:
    again = "draw it again: python -m tests.ops.live_picture"
    assert live_picture.drawn() == live_picture.PICTURE.read_text("utf-8"), again


def test_a_terminal_of_80_by_24() -> None:
    lines = shown(busy(9180), (80, 24))
    assert len(lines) == 24
    assert lines[:11] == NARROW.splitlines()
    assert lines[-3:] == NARROW_END.splitlines()


def test_a_wide_terminal_has_all_columns() -> None:
    there = replace(swarm_vm("swarm-1", 3000).instance, zone="us-central1-f")
    lines = shown(fleet(replace(swarm_vm("swarm-1", 3000), instance=there)), (160, 50))
    assert lines[1].split() == [
        *("VM", "zone", "state", "agents", "release", "wanted", "running", "failed"),
        *("window", "memory", "left"),
    ]
    bar = "█" * 40
    assert f"swarm-1           us-central1-f  whole    {bar}  1.18.0    3,000" in lines[3]
    assert all(len(line) <= 160 for line in lines)


def large() -> Fleet:
    """A fleet that does not fit on a screen."""
    vms = [replace(swarm_vm("swarm-3", 1500).instance, name=f"swarm-{at}") for at in range(3, 60)]
    return fleet(*(replace(swarm_vm("swarm-3", 1500), instance=each) for each in vms))


def test_a_fleet_that_does_not_fit_is_scrolled() -> None:
    app = live(looks([large()]))

    async def steps(pilot: Pilot[int]) -> None:
        first = screen(app)
        assert "swarm-59" not in "\n".join(first)
        assert first[-1].startswith("d drain")
        assert any(line.startswith("─events") for line in first)
        await pilot.press("end", "ctrl+end")
        await pilot.pause()
        assert "swarm-59" in "\n".join(screen(app))

    drive(app, steps)


def test_a_vm_that_is_silent_is_grey_and_others_are_not() -> None:
    quiet = swarm_vm("swarm-2", 5000)
    quiet = replace(quiet, problem="it is silent for 5 min")
    grid = live_rows.grid(fleet(quiet), 100)
    styles = {vm: {style for _, style in line.parts} for vm, line in grid.rows.items()}
    assert styles["swarm-2"] == {"dim"}
    assert "dim" not in styles["swarm-1"] | styles["swarm-3"]
    stale = live_rows.grid(fleet(), 100, stale=True)
    assert {style for line in stale.rows.values() for _, style in line.parts} == {"dim"}
    assert any("silent" in line for line in shown(fleet(quiet), (80, 24)))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (UnreachableError, "API unreachable since 20:26:40Z: nobody answers at x"),
        (DeniedError, "no look at the fleet since 20:26:40Z: nobody answers at x"),
    ],
)
def test_a_look_that_fails_says_since_when_until_one_succeeds(
    error: type[OpsError], says: str
) -> None:
    later = fleet(online=9400, now=NOW + 60)
    wrong = [error("nobody answers at x") for _ in range(2)]
    app = live(looks([fleet(), *wrong, later], failed=NOW + 30))

    async def steps(pilot: Pilot[int]) -> None:
        for _ in range(2):
            app.show(app.look_now())
        await pilot.pause()
        lines = screen(app)
        assert lines[1].startswith(says)
        assert lines[0].endswith("9,500 of 9,500 online  20:26:40Z")
        assert sum("ops/blind" in line for line in lines) == 1
        assert lines[4].startswith("swarm-1")
        assert is_grey(app, 4)
        app.show(app.look_now())
        await pilot.pause()
        lines = screen(app)
        assert lines[0].endswith("9,400 of 9,500 online  20:27:40Z")
        assert lines[3].startswith("swarm-1")
        assert not is_grey(app, 3)
        assert any("over  ops/blind" in line for line in lines)

    drive(app, steps)


def is_grey(app: LiveApp, line: int) -> bool:
    """Whether a line of the screen is dim."""
    strip = app.screen._compositor.render_strips()[line]
    styles = [segment.style for segment in strip if segment.text.strip()]
    return bool(styles) and all(style is not None and style.dim for style in styles)


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text says it all: what is chosen is reversed, what is silent is dim."""

    def colours(found: str) -> set[str]:
        return set(re.findall(r"-r\d+ \{ fill: (#\w+)", found))

    both = []
    for _ in range(2):
        app = live(looks([busy(9180)]))
        taken: list[str] = []

        async def steps(_: Pilot[int], app: LiveApp = app, taken: list[str] = taken) -> None:
            taken.extend((picture(app), *screen(app)))

        drive(app, steps)
        both.append(taken)
        monkeypatch.setenv("NO_COLOR", "1")
    (coloured, *text), (plain, *same) = both
    assert len(colours(coloured)) > 3
    # The default colour, and the background's where it is reversed.
    assert colours(plain) == {"#c5c8c6", "#292929"}
    assert same == text


@pytest.mark.parametrize("found", [busy(9180), large()], ids=["busy", "scrolled"])
def test_colours_are_the_terminals_own(found: Fleet) -> None:
    """So that they can be read on a dark terminal and on a light one."""
    app = live(looks([found]))

    async def steps(pilot: Pilot[int]) -> None:
        strips = app.screen._compositor.render_strips()
        styles = [segment.style for strip in strips for segment in strip if segment.style]
        used = {each for style in styles for each in (style.color, style.bgcolor) if each}
        assert len(used) > 2
        assert [each.name for each in used if each.triplet is not None] == []
        # Nothing lies on black or white: each is wrong on one of the two.
        lying = {each.bgcolor.name for each in styles if each.bgcolor}
        assert lying == {"default"}

    drive(app, steps)


@pytest.mark.parametrize(
    ("counts", "width", "text"),
    [
        ({"running": 100}, 10, "██████████"),
        ({"running": 0}, 10, "··········"),
        ({"running": 99}, 10, "█████████·"),
        ({"running": 50, "starting": 15, "failed": 30}, 10, "█████▒!!!·"),
        ({"running": 99, "failed": 1}, 10, "█████████!"),
        ({"running": 1, "starting": 1, "failed": 1}, 10, "█▒!·······"),
        ({"running": 200}, 10, "██████████"),
        ({"running": None}, 10, "??????????"),
        ({"running": 10, "wanted": 0}, 10, ""),
        ({"running": 1, "starting": 1, "failed": 98}, 8, "█▒!!!!!!"),
    ],
)
def test_bars(counts: dict[str, Any], width: int, text: str) -> None:
    row = replace(status.row(swarm_vm("swarm-1", 0)), **{"wanted": 100, "starting": 0, **counts})
    assert "".join(part for part, _ in live_rows.bar(row, width)) == text


def test_a_line_over_time() -> None:
    values = [None, 0, 50, 100, 120]
    assert live_rows.spark(values, 100, 7, 1).plain == "   ▁▄██"
    assert live_rows.spark(values, 100, 3, 1).plain == "▄██"
    assert live_rows.spark([0, 25, 75], 100, 3, 2).plain == "  ▄\n▁▄█"
    assert live_rows.spark([], 0, 2, 1).plain == "  "


def test_orders_that_stand() -> None:
    standing = {"swarm-1/held": "it is held by an order of someone"}
    rolls = swarm_vm(
        "swarm-2", 5000, roll=RollStatus(state="halted", version="2", sha256=NEW, reason="why")
    )
    found = fleet(held("swarm-1"), held("swarm-3"), rolls)
    assert live_rows.orders(found, standing) == [
        "swarm-1: it is held by an order of someone",
        "swarm-3: it is held by an order",
        "swarm-2: roll to 2 halted (why)",
    ]
    assert live_rows.orders(fleet(), {}) == []
    every = [held(name) for name in ("swarm-1", "swarm-2", "swarm-3")]
    waits = rendezvous_vm(roll=RollStatus(state="waiting", version="2", sha256=NEW))
    everyone = [*every, replace(rolls, instance=replace(rolls.instance, name="swarm-4")), waits]
    assert live_rows.orders(fleet(*everyone), {})[3:] == ["… and 2 more (`ops status`)"]


def test_a_vm() -> None:
    app = live(looks([busy(9180)]))

    async def steps(pilot: Pilot[int]) -> None:
        await pilot.press("down", "down", "down", "enter")
        await pilot.pause()
        lines = screen(app)
        assert lines[:7] == ONE_VM.splitlines()
        assert lines[-1].startswith("esc back c console d drain")
        await pilot.press("escape")
        await pilot.pause()
        assert screen(app)[0].startswith("production: swarm")

    drive(app, steps)


# On the simulated fleet


@pytest.fixture
def place(simulated: Simulated) -> Iterator[Cloud]:
    made = cloud(simulated.serving.url)
    yield made
    # Its connections each keep a thread of the lab, which keeps the stderr of its start: Textual's,
    # and so the program that has this cloud.
    vars(made).clear()


def watching(at: Cloud) -> FleetLooks:
    """Looks as the command line's."""
    return FleetLooks(lambda: fleets.read(at), lambda seen: holds.alerts(at, seen), Limits())


def text(app: LiveApp) -> str:
    return "\n".join(screen(app))


async def choose(pilot: Pilot[int], vm: str) -> None:
    """Put the cursor on a VM."""
    names = [RENDEZVOUS, "swarm-1", "swarm-2", "swarm-3"]
    await pilot.press(*["down"] * names.index(vm))


async def order(pilot: Pilot[int], key: str, *says: str) -> None:
    """Press a key; its question has these words."""
    await pilot.press(key)
    await until(pilot, lambda: isinstance(pilot.app.screen, AskScreen))
    await pilot.pause()
    # Other text is beside the question.
    box = [line.split("┃")[1] for line in screen(pilot.app) if line.count("┃") == 2]
    asked = " ".join(" ".join(box).split())
    for each in says:
        assert each in asked, (each, asked)


@pytest.mark.parametrize(
    ("key", "vm", "says", "given"),
    [
        ("d", "swarm-1", "Drain swarm-1? Its 120 agents stop, at most 15 at a time.", {"hold": 1}),
        ("d", RENDEZVOUS, "Its registry is saved and stops until undrain.", {"hold": 1}),
        ("p", "swarm-1", "Pause the benchmarks on swarm-3, swarm-1, swarm-2?", {"benchmarks": 1}),
    ],
)
def test_a_key_asks_and_gives_the_order_of_the_command_line(
    simulated: Simulated, place: Cloud, key: str, vm: str, says: str, given: dict[str, Any]
) -> None:
    app = live(watching(place), at=place)

    async def steps(pilot: Pilot[int]) -> None:
        await choose(pilot, vm)
        await order(pilot, key, says)
        await pilot.press("n")
        await pilot.pause()
        assert simulated.order(vm) == {}
        await order(pilot, key)
        await pilot.press("y")
        await until(pilot, lambda: "ordered: " in text(app))

    drive(app, steps)
    found = simulated.order(vm)
    assert set(given) <= set(found)
    assert found["by"] == "tester"


def test_a_drain_is_seen_and_ended(simulated: Simulated, place: Cloud) -> None:
    app = live(watching(place), at=place)

    async def steps(pilot: Pilot[int]) -> None:
        async def look() -> None:
            simulated.tick()
            app.show(app.look_now())
            await pilot.pause()

        await choose(pilot, "swarm-3")
        await order(pilot, "d")
        await pilot.press("y")
        await until(pilot, lambda: "ordered: drain swarm-3" in text(app))
        await look()
        await look()
        assert re.search(r"swarm-3 +held", text(app))
        assert "swarm-3: it is held by an order of tester" in text(app)
        await pilot.press("enter")
        await order(pilot, "u", "Undrain swarm-3? Its 60 agents start, at most 15 at a time.")
        await pilot.press("y", "escape")
        await until(pilot, lambda: "ordered: undrain swarm-3" in text(app))
        await look()
        await look()
        assert re.search(r"swarm-3 +whole", text(app))
        assert "orders that stand" not in text(app)

    drive(app, steps)
    assert simulated.order("swarm-3").get("hold") is None
    # The drain stands no longer.
    assert list(app.desk.given.values()) == ["undrain swarm-3"]


@pytest.mark.parametrize(
    ("key", "says", "verdict"),
    [
        ("g", "Roll swarm-1 from 1.18.0 to 1.19.0? Its 120 agents restart.", "go"),
        ("x", "Reject 1.19.0 on swarm-1, and stay at 1.18.0?", "reject"),
    ],
)
def test_a_roll_goes_on_or_is_rejected(
    simulated: Simulated, place: Cloud, key: str, says: str, verdict: str
) -> None:
    simulated.nodes["swarm-1"].roll = rolling(state="waiting", of=120)
    simulated.tick()
    app = live(watching(place), at=place)

    async def steps(pilot: Pilot[int]) -> None:
        await choose(pilot, "swarm-2")
        await pilot.press(key)
        await until(pilot, lambda: "swarm-2 has accepted what is declared for it" in text(app))
        await pilot.press("up")
        await order(pilot, key, says)
        await pilot.press("y")
        await until(pilot, lambda: "ordered: " in text(app))

    drive(app, steps, (100, 30))
    found = simulated.order("swarm-1")["roll"]
    assert (found["sha256"], found["verdict"]) == (NEW, verdict)


def test_paused_benchmarks_go_on_with_the_same_key(simulated: Simulated, place: Cloud) -> None:
    for node in simulated.nodes.values():
        if node.is_swarm:
            text_ = b'{"schema": 1, "benchmarks": "pause"}'
            simulated.client.upload(BUCKET, f"orders/{node.name}.json", text_)
    simulated.tick()
    app = live(watching(place), at=place)

    async def steps(pilot: Pilot[int]) -> None:
        assert "benchmarks are paused on swarm-3, swarm-1, swarm-2" in text(app)
        await order(pilot, "p", "Let benchmarks go on, on swarm-3, swarm-1, swarm-2")
        await pilot.press("y")
        await until(pilot, lambda: "ordered: let benchmarks go on" in text(app))

    drive(app, steps)
    assert "benchmarks" not in simulated.order("swarm-2")


def without(simulated: Simulated, right: str, matches: Callable[[Request], bool]) -> None:
    """Take a right away."""
    answer = simulated.serving.lab.answer

    def denied(request: Request) -> Response:
        if not matches(request):
            return answer(request)
        body = {"error": {"code": 403, "message": f"Permission '{right}' denied on resource"}}
        return Response(body=body, status=403)

    simulated.serving.lab.answer = denied  # type: ignore[method-assign]


def test_without_the_right_it_says_which_is_missing(simulated: Simulated, place: Cloud) -> None:
    right = "storage.objects.create"
    without(simulated, right, lambda request: request.path.startswith("/upload/"))
    app = live(watching(place), at=place)

    async def steps(pilot: Pilot[int]) -> None:
        await choose(pilot, "swarm-1")
        await order(pilot, "d")
        await pilot.press("y")
        await until(pilot, lambda: f"the right {right} is missing" in text(app))
        assert "ordered" not in text(app)

    drive(app, steps, (160, 50))
    assert simulated.order("swarm-1") == {}
    assert app.desk.given == {}


def test_a_restart_is_carried_out_while_the_screen_is_open(
    simulated: Simulated, place: Cloud
) -> None:
    app = live(watching(place), at=place, poll=0.2)

    async def steps(pilot: Pilot[int]) -> None:
        says = "Restart 380 agents on swarm-3, swarm-1, swarm-2? The VMs drain one after the other"
        await order(pilot, "r", says)
        await pilot.press("y")
        await until(pilot, lambda: "swarm-2: start" in text(app))
        await until(pilot, lambda: "restart: done" in text(app))

    with simulated.running():
        drive(app, steps, (100, 50))
    assert all(not simulated.order(name).get("hold") for name in simulated.nodes)
    app.desk.end()
    assert app.desk.interrupted is None


def test_leaving_interrupts_a_restart_which_another_can_continue(
    ops: Ops, simulated: Simulated, place: Cloud
) -> None:
    app = live(watching(place), at=place, poll=0.2)

    async def steps(pilot: Pilot[int]) -> None:
        await order(pilot, "r")
        await pilot.press("y")
        # Nobody ticks: the first VM never drains.
        await until(pilot, lambda: "restart: swarm-3: drains, 60 left" in text(app))
        await order(pilot, "r")
        await pilot.press("y")
        await until(pilot, lambda: "a restart is under way already" in text(app))
        assert simulated.order(RENDEZVOUS)["banner"].startswith("restart under way since")
        await pilot.press("ctrl+c")

    assert drive(app, steps, (100, 50)) == 130
    app.desk.end()
    assert app.desk.interrupted is not None
    assert "banner" not in simulated.order(RENDEZVOUS)
    kept = plan.decode(place.read(BUCKET, plan.OBJECT).data)
    assert kept is not None
    assert not kept.is_over
    with simulated.running():
        assert ops("restart", "--resume").code == 0


def test_a_look_costs_no_more_requests_than_one_of_watch(
    ops: Ops, simulated: Simulated, place: Cloud
) -> None:
    """Also where a VM is held, by whom the bucket tells."""
    simulated.client.upload(BUCKET, "orders/swarm-3.json", b'{"schema": 1, "hold": true}')
    simulated.tick()
    simulated.tick()
    simulated.asked.clear()
    ops("watch", "--once")
    watched = sorted(simulated.asked)
    assert len(watched) > 5
    app = live(watching(place), at=place, every=0.05)

    async def steps(pilot: Pilot[int]) -> None:
        await pilot.press("down", "enter")
        await until(pilot, lambda: "last lines" in text(app))
        await pilot.press("escape")
        before = len(app.state.history)
        await until(pilot, lambda: len(app.state.history) >= before + 3)

    simulated.asked.clear()
    drive(app, steps)
    count = simulated.asked.count(next(each for each in watched if "aggregated" in each))
    asked = [each for each in simulated.asked if "serialPort" not in each]
    assert count >= 4
    assert len(asked) <= count * len(watched), (Counter(watched), Counter(asked))
    # The first look of all asks for the bucket too.
    assert set(asked) <= set(watched)


def test_one_look_at_a_time() -> None:
    inside, most = 0, 0
    started = threading.Barrier(3)

    def ask() -> Fleet:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        found = fleet()
        inside -= 1
        return found

    source = FleetLooks(ask, lambda _: {}, Limits())

    def go() -> None:
        started.wait()
        source.next()

    threads = [threading.Thread(target=go) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert most == 1


def test_a_console_has_no_escape_sequences(simulated: Simulated, place: Cloud) -> None:
    console = [
        b"first",
        b"x" * 600,
        *[b""] * 4000,
        b"said [b]so[/b] \x1b[2J\x1b[0;32mlast\x1b(B",
        b"",
    ]
    simulated.console(b"\r\n".join(console))
    app = live(watching(place), at=place)

    async def steps(pilot: Pilot[int]) -> None:
        await pilot.press("enter")
        await until(pilot, lambda: "said [b]so[/b] last" in text(app))
        assert "first" not in text(app)

    drive(app, steps, (100, 50))


def test_a_bug_in_a_thread_ends_the_program() -> None:
    def ask() -> Fleet:
        raise ZeroDivisionError

    app = live(looks([fleet()]), every=1e6)
    app.look_now = FleetLooks(ask, lambda _: {}, Limits()).next

    async def steps(pilot: Pilot[int]) -> None:
        app._in_thread(app.look_now)
        await until(pilot, lambda: app.return_code == 1)

    with pytest.raises(ZeroDivisionError):
        drive(app, steps)


# On a terminal


def test_it_needs_a_terminal(ops: Ops) -> None:
    found = ops("live")
    assert found.code == 2
    assert "live needs a terminal" in found.err


def test_a_look_shows_on_a_terminal_that_it_is_under_way(simulated: Simulated) -> None:
    """Not on the one that is piped, and nothing of it stays."""
    command = [sys.executable, "-m", "ops", "--endpoint", simulated.serving.url]
    command += ["--project", "p1", "status", "--json"]
    environment = {**os.environ, "TERM": "xterm-256color"}
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs, check=True
        )
        wrote = b""
        while select.select([ours], [], [], 0)[0]:
            wrote += os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert json.loads(done.stdout)
    assert b"looking at the fleet" in wrote
    assert wrote.rfind(b"\x1b[?25h") > wrote.rfind(b"\x1b[?25l")
    assert wrote.endswith(b"\x1b[2K")
    piped = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    assert piped.stderr == b""


def on_a_terminal(simulated: Simulated, *ending: bytes | signal.Signals) -> tuple[int, bytes]:
    """Run `live` on a terminal until it shows the fleet, then press keys or send signals; its exit
    code and what it wrote. The terminal's modes must be what they were."""
    ours, theirs = pty.openpty()
    try:
        termios.tcsetwinsize(theirs, (24, 80))
        before = termios.tcgetattr(theirs)
        command = [sys.executable, "-m", "ops", "--endpoint", simulated.serving.url]
        command += ["--project", "p1", "live"]
        environment = {**os.environ, "TERM": "xterm-256color"}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        wrote = b""

        def read(until: bytes) -> None:
            nonlocal wrote
            while until not in wrote:
                ready, _, _ = select.select([ours], [], [], 60)
                assert ready, wrote
                wrote += os.read(ours, 65536)

        try:
            read(b"380 of 380 online")
            for each in ending:
                if isinstance(each, bytes):
                    os.write(ours, each)
                else:
                    process.send_signal(each)
            # It leaves the other screen, and shows the cursor.
            read(b"\x1b[?1049l")
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
        while select.select([ours], [], [], 0)[0]:
            wrote += os.read(ours, 65536)
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)
    return code, wrote


@pytest.mark.parametrize(
    ("ending", "code"),
    [(b"\x03", 130), (b"q", 0), (signal.SIGTERM, 130)],
    ids=["ctrl-c", "q", "sigterm"],
)
def test_it_leaves_the_terminal_as_it_was(
    simulated: Simulated, ending: bytes | signal.Signals, code: int
) -> None:
    found, wrote = on_a_terminal(simulated, ending)
    assert found == code
    assert b"Traceback" not in wrote
    after = wrote.rpartition(b"\x1b[?1049l")[2]
    assert wrote.rfind(b"\x1b[?25h") > wrote.rfind(b"\x1b[?25l")
    # Mouse and bracketed paste are off again.
    for mode in (b"1000", b"1003", b"2004"):
        assert wrote.rfind(b"\x1b[?%sl" % mode) > wrote.rfind(b"\x1b[?%sh" % mode)
    assert b"ordered" not in after
