"""The status document in its parts, and how it gets out while the metadata server fails."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from startup.node.machine.metadata import MetadataServer
from startup.node.machine.paths import Paths
from startup.node.machine.retry import FinalError, TemporaryError
from startup.node.machine.state_disk import Usage
from startup.node.pressure.kernel_limits import LimitUse
from startup.node.pressure.sampler import Heavy, Sample
from startup.node.report import status
from startup.node.report.publisher import LATER, SOON, Publisher
from startup.node.report.status import (
    LIMIT,
    OrdersStatus,
    Published,
    RegistryStatus,
    RollStatus,
    Said,
    clip,
    document,
    encode,
    phase,
    significant,
    trim,
)
from startup.node.rollout.roll_state import Rejected
from tests.startup import facts
from tests.startup.facts import NEW, NOW, OLD, PORTS, Trouble, View, Window
from tests.startup.google import Google

CONTRACT = Path(__file__).parents[4] / "docs/CONTRACT.md"


def contract_fields(role: str) -> set[str]:
    """The top-level fields that the contract's table has for `role`."""
    part = CONTRACT.read_text(encoding="utf-8").partition("## Status")[2].partition("## Metrics")[0]
    found: set[str] = set()
    for line in part.splitlines():
        if line.startswith("| `"):
            names, where, _ = line.strip("| ").split(" | ", 2)
            if where in (role, "both"):
                found |= {name.strip("` ") for name in names.split(",")}
    return found


def test_every_field_of_the_contract_and_no_other() -> None:
    assert set(document(facts.swarm())) == contract_fields("swarm")
    assert set(document(facts.rendezvous())) == contract_fields("rendezvous")


def test_a_whole_swarm_vm() -> None:
    found = document(facts.swarm())
    assert found["phase"] == "whole"
    assert found["time"] == "2026-05-28T20:26:40Z"
    assert found["uptime"] == 813
    assert found["agents"] == {
        "wanted": 3,
        "running": 3,
        "starting": 0,
        "stopping": 0,
        "failed": 0,
        "troubled": [],
    }
    assert found["release"] == {"version": "1.18.0", "sha256": OLD, "agents": {OLD: 3}}
    assert found["last_error"] is None
    assert found["trimmed"] == []


def test_an_unknown_number_is_null() -> None:
    found = document(facts.swarm(sample=Sample(), uptime=None))
    memory = found["memory"]
    for name in ("total", "available", "slice", "agent_mean", "over", "growth"):
        assert memory[name] is None, name
    assert found["uptime"] is found["udp_sockets"] is found["connections"]["mean"] is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "whole"),
        ({"stopping": True, "drained": True}, "stopping"),
        ({"drained": True, "goal": {}}, "draining"),
        ({"drained": True, "goal": {}, "view": View(ready=frozenset())}, "held"),
        (
            {"drained": True, "goal": {}, "view": View(ready=frozenset(), stopping={10001: 1.0})},
            "draining",
        ),
        ({"roll": RollStatus(state="rolling")}, "rolling"),
        ({"roll": RollStatus(state="watching")}, "rolling"),
        ({"roll": RollStatus(state="halted")}, "whole"),
        ({"view": View(ready=frozenset(PORTS[1:]))}, "converging"),
        ({"view": View(starting={10004: 1.0})}, "converging"),
        ({"view": View(stopping={10001: 1.0})}, "converging"),
        ({"goal": dict.fromkeys(PORTS[1:], "v-old")}, "converging"),
        ({"goal": dict.fromkeys(PORTS, "v-new")}, "converging"),
        ({"view": View(variant={}), "goal": dict.fromkeys(PORTS, "v-new")}, "whole"),
        ({"goal": {}, "view": View(ready=frozenset())}, "whole"),
    ],
)
def test_phase(changes: dict[str, Any], expected: str) -> None:
    assert phase(facts.swarm(**changes)) == expected


def test_troubled_agents_the_worst_first() -> None:
    trouble = {port: Trouble(failures=port - 10000, until=101.6) for port in range(10001, 10021)}
    trouble[10020] = Trouble(failures=99, until=90.0, why="x\ny\x1b[31m" + "z" * 999)
    view = View(ready=frozenset({10019}), starting={10018: 1.0}, trouble=trouble)
    agents = document(facts.swarm(view=view))["agents"]
    assert agents["failed"] == 18
    ports = [one["port"] for one in agents["troubled"]]
    assert ports == [10020, *range(10017, 10008, -1)]
    assert agents["troubled"][1]["again"] == 2
    assert agents["troubled"][0]["again"] == 0
    why = agents["troubled"][0]["why"]
    assert why.startswith("x y [31mz")
    assert len(why) == 400


def test_releases_that_run() -> None:
    view = View(variant={10001: "v-old", 10002: "v-new", 10003: "gone"})
    found = document(facts.swarm(view=view))
    assert found["release"]["agents"] == {OLD: 1, NEW: 1, "unknown": 1}


def test_a_window_that_rests() -> None:
    window = Window(size=3, rest_until=104.4, why="registry does not answer")
    found = document(facts.swarm(view=View(window=window)))["window"]
    assert found == {"size": 3, "limit": 15, "resting": 4, "why": "registry does not answer"}


def full() -> status.Document:
    """Everything that can be long, as long as it gets."""
    trouble = {p: Trouble(failures=9, until=0, why='"' * 900) for p in range(10001, 10040)}
    top = tuple(Heavy(port=p, node_id=2**31, bytes=2**40) for p in range(10001, 10040))
    rejected = tuple(
        Rejected(version="9" * 64, sha256=f"{i:064}", reason="ü" * 900, time=NOW) for i in range(40)
    )
    walls = tuple(LimitUse(name=f"wall-{i}", used=1, limit=1) for i in range(6))
    return document(
        facts.swarm(
            view=View(ready=frozenset(), trouble=trouble),
            sample=Sample(top=top, limits=walls, leak="l" * 999),
            roll=RollStatus(reason="r" * 999, rejected=rejected),
            last_error=Said(text="e" * 9999, time=NOW),
            orders=OrdersStatus(error="o" * 9999),
        )
    )


def test_it_fits_and_names_the_trimmed_lists() -> None:
    found = full()
    assert len(encode(found).encode()) <= LIMIT
    assert any(line.startswith("roll.rejected: ") for line in found["trimmed"])
    # The newest of what is in the order of time.
    assert found["roll"]["rejected"][-1]["sha256"] == f"{39:064}"
    # The shorter lists are whole.
    assert len(found["walls"]) == 6


def test_many_files_set_aside() -> None:
    names = tuple(f"registry.json.{i:05}" for i in range(3000))
    registry = RegistryStatus(
        online=None,
        total=None,
        store=None,
        store_time=None,
        copies=0,
        newest_copy=None,
        set_aside=names,
    )
    found = document(facts.rendezvous(registry=registry))
    assert len(encode(found).encode()) <= LIMIT
    kept = found["registry"]["set_aside"]
    assert kept[-1] == names[-1]
    assert found["trimmed"] == [f"registry.set_aside: {len(kept)} of 3000"]


@given(st.text(max_size=2000))
def test_clip(text: str) -> None:
    clipped = clip(text)
    assert len(clipped) <= 400
    assert clipped.isprintable() or clipped == ""
    assert json.loads(json.dumps(clipped, ensure_ascii=False).encode()) == clipped


def test_trim_changes_nothing_that_fits() -> None:
    found = document(facts.swarm())
    assert trim(found) is found


def test_significant_changes() -> None:
    base = facts.swarm()
    quiet = facts.swarm(
        now=NOW + 9,
        uptime=9e9,
        sample=Sample(total=4 << 30, available=1, slice=7, growth=1.0, udp_sockets=8, asked=9),
        view=View(now=109.0, window=Window(rest_until=200.0)),
        disk=Usage(device=10 << 30, size=9 << 30, free=1),
        published=Published(time=NOW),
    )
    assert significant(document(base)) == significant(document(quiet))
    for news in (
        {"ghosts": ("startup-script",)},
        {"disk": Usage(device=20 << 30, size=9 << 30, free=8 << 30)},
        {"view": View(starts=4)},
        {"sample": Sample(leak="leaks")},
        {"sample": Sample(over=1)},
        {"sample": Sample(limits=(LimitUse(name="memory", used=9, limit=10),))},
        {"last_error": Said(text="x", time=NOW)},
    ):
        assert significant(document(base)) != significant(document(facts.swarm(**news))), news


def test_an_agent_that_rests_is_news_once() -> None:
    one = document(facts.swarm(view=View(trouble={1: Trouble(failures=1, until=200)})))
    two = document(facts.swarm(view=View(now=110, trouble={1: Trouble(failures=1, until=200)})))
    assert one != two
    assert significant(one) == significant(two)


class Server:
    """A metadata server that takes what it is given, or fails as ordered."""

    def __init__(self) -> None:
        self.taken: list[status.Document] = []
        self.failure: Exception | None = None

    def put(self, name: str, value: str) -> None:
        assert name == "pilot/status"
        if self.failure:
            raise self.failure
        self.taken.append(json.loads(value))


class Publishing:
    """A publisher on a clock that is turned by hand, without its thread."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.server = Server()
        self.said: list[str] = []
        self.file = folder / "run/pilot/status.json"
        self.publisher = Publisher(
            paths=Paths(root=folder),
            put=self.server.put,
            say=self.said.append,
            clock=lambda: self.now,
            wall_clock=lambda: NOW,
        )

    def after(self, seconds: float, **changes: Any) -> float | None:
        self.now += seconds
        self.publisher.publish(document(facts.swarm(now=NOW + self.now, **changes)))
        return self.publisher.step()


@pytest.fixture
def publishing(tmp_path: Path) -> Publishing:
    return Publishing(tmp_path)


def test_nothing_to_publish_yet(publishing: Publishing) -> None:
    assert publishing.publisher.step() is None


def test_the_first_at_once_then_news_soon_and_the_rest_later(publishing: Publishing) -> None:
    assert publishing.after(0) == SOON
    assert len(publishing.server.taken) == 1
    assert publishing.after(1) == LATER - 1
    assert publishing.after(1, ghosts=("startup-script",)) == SOON - 2
    assert len(publishing.server.taken) == 1
    publishing.after(3, ghosts=("startup-script",))
    assert publishing.server.taken[-1]["ghosts"] == ["startup-script"]
    assert publishing.after(SOON, ghosts=("startup-script",)) == LATER - SOON
    publishing.after(LATER - SOON, ghosts=("startup-script",))
    assert len(publishing.server.taken) == 3


def test_the_file_has_the_published_document(publishing: Publishing) -> None:
    publishing.after(0)
    assert json.loads(publishing.file.read_text()) == publishing.server.taken[-1]
    assert publishing.file.stat().st_mode & 0o777 == 0o644


def test_a_server_that_is_away(publishing: Publishing) -> None:
    publishing.server.failure = TemporaryError("connection refused")
    assert publishing.after(0) == SOON
    assert publishing.publisher.published == Published(time=None, error="connection refused")
    # The file does not need it.
    assert publishing.file.exists()
    assert [publishing.after(SOON), publishing.after(10), publishing.after(20)] == [10, 20, 40]
    assert publishing.after(40) == LATER
    assert publishing.after(1, ghosts=("x",)) == LATER - 1
    assert len(publishing.said) == 1
    publishing.server.failure = None
    assert publishing.after(LATER - 1) == SOON
    assert len(publishing.server.taken) == 1
    assert publishing.publisher.published == Published(time=NOW)
    assert publishing.said == [
        "status: connection refused; tried again until it is taken",
        "status: taken again",
    ]


def test_guest_attributes_that_are_off_and_a_disk_that_is_full(
    publishing: Publishing, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing.server.failure = FinalError("403 Forbidden")
    publishing.after(0)
    assert publishing.publisher.published.error == "403 Forbidden"

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("startup.node.machine.files.write", full)
    publishing.after(SOON)
    error = "[Errno 28] No space left on device"
    assert publishing.publisher.published.error == f"{error}; 403 Forbidden"
    # Who is elsewhere hears of it.
    publishing.server.failure = None
    publishing.after(2 * SOON)
    assert len(publishing.server.taken) == 1
    assert publishing.publisher.published == Published(time=NOW, error=error)


def test_the_thread_publishes_and_publish_never_waits(tmp_path: Path) -> None:
    entered, leave, taken = threading.Event(), threading.Event(), []

    def put(name: str, value: str) -> None:
        entered.set()
        assert leave.wait(10)
        taken.append(json.loads(value)["vm"])

    publisher = Publisher(paths=Paths(root=tmp_path), put=put, say=lambda line: None)
    publisher.start()
    publisher.publish(document(facts.swarm(vm="first")))
    assert entered.wait(10)
    # It hangs in `put`; these come back all the same, and the newest goes out at the end.
    publisher.publish(document(facts.swarm(vm="second")))
    publisher.publish(document(facts.swarm(vm="third")))
    leave.set()
    publisher.close(10)
    assert taken == ["first", "third"]


def test_into_the_metadata_server(tmp_path: Path, google: Google) -> None:
    server = MetadataServer(host=google.host)
    said: list[str] = []
    publisher = Publisher(
        paths=Paths(root=tmp_path), put=server.put_guest_attribute, say=said.append
    )
    publisher.publish(full())
    publisher.step()
    assert (said, publisher.published.error) == ([], "")
    value = google.guest_attributes["pilot/status"]
    assert json.loads(value)["vm"] == "swarm-1"
    assert [path.name for path in (tmp_path / "run/pilot").iterdir()] == ["status.json"]
