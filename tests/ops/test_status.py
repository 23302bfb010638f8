"""`status` and `top`, from the API to the exit code."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from google.oauth2.credentials import Credentials
from rich.console import Console

from lab.cloud.server import serve
from lab.cloud.web import Request, Response
from ops import fleet as fleets
from ops import google, status, watch
from ops.cli import main
from ops.cloud_address import CloudAddress
from ops.fleet import Instance, listen
from ops.google import Cloud
from ops.json_document import Doc
from ops.registry_counts import RegistryCounts, counted
from startup.node.pressure.sampler import Sample
from startup.node.report.status import RollStatus, Said, document, encode
from tests.components.fleet import ROOT
from tests.conftest import measured
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.simulated import RENDEZVOUS, Simulated, rolling, swarm_spec
from tests.startup import facts

NOW = 1_780_000_000.0


def instance(**changes: Any) -> Instance:
    given: dict[str, Any] = {
        "name": "swarm-1",
        "zone": "z",
        "state": "RUNNING",
        "machine": "e2-standard-8",
        "metadata": {"pilot-role": "swarm", "pilot-spec": '{"agents": 3}'},
        "started": NOW - 1000,
    }
    return Instance(**{**given, **changes})


def heard(text: str | None, at: float = NOW, **changes: Any) -> fleets.Vm:
    return listen(instance(**changes), text, at)


def said(**changes: Any) -> str:
    return encode(document(facts.swarm(now=NOW, **changes)))


def test_a_whole_fleet(ops: Ops) -> None:
    found = ops("status", "--json")
    assert found.code == 0, found
    rows = {row["vm"]: row for row in found.json["rows"]}
    assert list(rows) == [RENDEZVOUS, "swarm-1", "swarm-2", "swarm-3"]
    one = rows["swarm-2"]
    assert (one["wanted"], one["running"], one["failed"]) == (200, 200, 0)
    assert (one["phase"], one["release"], one["window"], one["window_limit"]) == (
        "whole",
        "1.18.0",
        15,
        15,
    )
    assert (one["memory_used"], one["memory_left"]) == (384 << 20, 640 << 20)
    assert (found.json["wanted"], found.json["running"], found.json["online"]) == (380, 380, 380)
    assert found.json["registry_source"] == RENDEZVOUS
    table = ops("status")
    assert table.code == 0
    assert "swarm-3" in table.out
    assert "380 of 380 online, 385 registered" in table.out


def test_right_after_up_nothing_has_a_status(ops: Ops, simulated: Simulated) -> None:
    with simulated.serving.lab.store.transaction() as tx:
        for where in tx.collections("guest/"):
            for name in tx.documents(where):
                tx.delete(where, name)
    found = ops("status", "--json")
    assert found.code == 1
    assert {row["phase"] for row in found.json["rows"]} == {"unknown"}
    assert all("published no status" in row["notes"][0] for row in found.json["rows"])
    assert found.json["online"] is None
    assert found.json["unknown"] == 380
    assert "swarm-1, swarm-2, swarm-3 do not say how many run" in ops("status").out


def test_a_vm_that_is_off_is_not_counted(ops: Ops, simulated: Simulated) -> None:
    simulated.client.do("POST", f"{ZONE}/instances/swarm-3/stop")
    simulated.dead = 60
    simulated.tick()
    found = ops("status", "--json")
    row = found.json["rows"][3]
    assert found.code == 1
    assert (row["phase"], row["running"], row["notes"]) == ("off", 0, ["it is TERMINATED"])
    assert found.json["running"] == 320
    text = ops("status").out
    assert "60 more are online than are known to run" in text
    assert "stale threshold" in text


def test_a_vm_that_was_deleted_is_missed(ops: Ops, simulated: Simulated) -> None:
    """The other VMs want fewer agents than were declared: the rendezvous' spec has the number."""
    simulated.client.do("DELETE", f"{ZONE}/instances/swarm-2")
    del simulated.nodes["swarm-2"]
    simulated.tick()
    found = ops("status", "--json")
    assert found.code == 1
    assert (found.json["wanted"], found.json["running"], found.json["online"]) == (380, 180, 180)
    text = ops("status").out
    assert "200 of 380 agents that the rendezvous was told of are wanted by no VM" in text
    assert "180 of 380 online" in text


def test_a_fleet_without_agents_online_is_not_well(ops: Ops, simulated: Simulated) -> None:
    simulated.dead = -20
    simulated.tick()
    assert ops("status").code == 0
    simulated.dead = -21
    simulated.tick()
    found = ops("status", "--json")
    assert (found.code, found.json["online"], found.json["running"]) == (1, 359, 380)


def test_a_vm_that_is_whole_by_another_spec_is_not_well(ops: Ops, simulated: Simulated) -> None:
    declared = swarm_spec("swarm-2", 5000)
    simulated.set_metadata("swarm-2", {"pilot-spec": json.dumps(declared)})
    found = ops("status", "--json")
    row = found.json["rows"][2]
    assert (row["vm"], row["phase"], row["wanted"], row["running"]) == (
        "swarm-2",
        "whole",
        5000,
        200,
    )
    assert not row["is_well"]
    assert row["notes"][0].startswith("it says that it is whole, and runs 200 of 5,000")


def test_a_vm_that_cannot_be_read_hides_no_other(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "RETRY", google.RETRY.with_timeout(0.1))
    answer = simulated.serving.lab.answer
    code = 500

    def refuse(request: Request) -> Response:
        if request.path.endswith("/swarm-3/getGuestAttributes"):
            return Response(body={"error": {"code": code, "message": "backend"}}, status=code)
        return answer(request)

    simulated.serving.lab.answer = refuse  # type: ignore[method-assign]
    found = ops("status", "--json")
    rows = {row["vm"]: row for row in found.json["rows"]}
    assert (found.code, rows["swarm-2"]["running"], rows["swarm-3"]["running"]) == (1, 200, None)
    assert "its status cannot be read: swarm-3's guest attribute" in rows["swarm-3"]["notes"][0]
    assert "500 (backend)" in rows["swarm-3"]["notes"][0]
    watched = ops("watch", "--once")
    assert (watched.code, watched.out.count("ALERT"), "swarm-3/silent" in watched.out) == (
        1,
        1,
        True,
    )
    code = 403
    refused = ops("status", "--json")
    rows = {row["vm"]: row for row in refused.json["rows"]}
    assert (refused.code, rows["swarm-2"]["running"], rows["swarm-3"]["running"]) == (1, 200, None)


def test_a_roll_a_ghost_and_a_registry_that_is_down(ops: Ops, simulated: Simulated) -> None:
    simulated.nodes["swarm-1"].roll = rolling(state="rolling", done=40, of=120)
    simulated.nodes["swarm-2"].changes["ghosts"] = ("startup-script", "project/shutdown-script")
    simulated.nodes[RENDEZVOUS].away = 10**6
    simulated.tick()
    found = ops("status", "--json")
    rows = {row["vm"]: row for row in found.json["rows"]}
    assert found.code == 1
    assert rows["swarm-1"]["phase"] == "rolling"
    assert "roll of 1.19.0: rolling, 40 of 120" in rows["swarm-1"]["notes"]
    assert "ghost script at the instance: startup-script (" in rows["swarm-2"]["notes"][0]
    assert "ghost script in the project's metadata: shutdown-script" in rows["swarm-2"]["notes"][1]
    assert not rows["swarm-2"]["is_well"]
    assert "registry is down" in found.json["registry_problem"]


@pytest.mark.parametrize(
    ("text", "state", "problem"),
    [
        (None, "RUNNING", "published no status"),
        (None, "TERMINATED", "it is TERMINATED"),
        ("{", "RUNNING", "not a JSON document"),
        ("[1]", "RUNNING", "not a JSON document"),
        ("[" * 100_000, "RUNNING", "not a JSON document"),
        ('{"schema": 2}', "RUNNING", "schema 2"),
        ('{"schema": 1}', "RUNNING", "no time"),
        ('{"schema": 1, "time": "yesterday"}', "RUNNING", "no time"),
        ('{"schema": 1, "time": "2026-05-28T20:26:40"}', "RUNNING", "no time"),
    ],
)
def test_an_invalid_status(text: str | None, state: str, problem: str) -> None:
    assert problem in heard(text, state=state).problem


@pytest.mark.parametrize(
    ("at", "started", "problem"),
    [
        (NOW + 179, NOW - 1000, ""),
        (NOW + 182, NOW - 1000, "silent for 3 min"),
        (NOW + 20, NOW + 2, "earlier boot"),
        # The time of a status has no fractions of a second, that of a start has.
        (NOW + 20, NOW + 0.9, ""),
        (NOW - 400, NOW - 1000, "clock is 6 min ahead"),
        (NOW, None, ""),
    ],
)
def test_an_old_status_is_not_current(at: float, started: float | None, problem: str) -> None:
    vm = heard(said(), at, started=started)
    assert problem in vm.problem
    assert bool(vm.problem) == bool(problem)
    assert vm.count("running") == (None if problem else 3)


def test_untrusted_text_is_only_text() -> None:
    error = Said(text="\x1b[31m[red]bad[/red]\n" + "x" * 50, time=NOW)
    row = status.row(heard(said(last_error=error)))
    assert "\x1b" not in "".join(row.notes)
    hostile = {"schema": 1, "time": "2026-05-28T20:26:40Z", "agents": [], "memory": {"total": 0}}

    ghosts = [{}, "\x1b[2J key"]
    vm = heard(json.dumps({**hostile, "roll": 7, "window": {"size": 1e999}, "ghosts": ghosts}))
    status.render(picture_of(vm))
    assert vm.count("running") is None
    assert status.row(vm).notes[0] == "ghost script at the instance: [2J key (`ops audit`)"


def picture_of(*vms: fleets.Vm, registry: RegistryCounts | None = None) -> status.Picture:
    found = fleets.Fleet(
        name="f",
        project="p",
        time=NOW,
        vms=vms,
        registry=registry or RegistryCounts(problem="none"),
    )
    return status.picture(found)


def test_differences_are_explained() -> None:
    vm = heard(said())
    for online, words in ((3, []), (5, ["2 more are online"]), (1, ["2 run and are not online"])):
        found = picture_of(vm, registry=RegistryCounts(online=online, source="x")).explained
        assert len(found) == len(words)
        assert all(word in text for word, text in zip(words, found, strict=True))


def test_restored_and_set_aside_registry_files_are_shown(ops: Ops, simulated: Simulated) -> None:
    """The runbook sends people there. The VM's own document has it."""
    assert ops("status", "--json").json["restored"] == ""
    copy, bad = "20261129T190000Z-95.json", "registry.json.bad-20261129T190100Z"
    simulated.nodes[RENDEZVOUS].changes_of_registry = {"restored": copy, "set_aside": (bad,)}
    simulated.tick()
    found = ops("status", "--json")
    assert (found.code, found.json["restored"], found.json["set_aside"]) == (0, copy, [bad])
    assert f"restored from the copy {copy} at its last start" in ops("status").out
    simulated.nodes[RENDEZVOUS].changes_of_registry = {"started_empty": True}
    simulated.tick()
    assert "its registry started EMPTY" in ops("status").out


def test_a_token_unknown_to_the_binary_is_shown(ops: Ops, simulated: Simulated) -> None:
    node = simulated.nodes[RENDEZVOUS]
    node.changes_of_registry = {"unsupported": ("banner", "tokens.dashboard")}
    simulated.tick()
    found = ops("status", "--json")
    assert (found.code, found.json["unsupported"]) == (1, ["banner", "tokens.dashboard"])
    notes = found.json["rows"][0]["notes"]
    assert notes[0].startswith("tokens.dashboard: declared, but its binary has no such flag")
    assert "the banner is not shown: its binary has none" in notes
    node.changes_of_registry = {"unsupported": ("banner",)}
    simulated.tick()
    assert ops("status").code == 0, "a banner is no state of the fleet"


def test_serious_notes_come_first() -> None:
    trouble = {10002: facts.Trouble(failures=3, until=200.0, why="exited 1")}
    view = facts.View(ready=frozenset({10001}), trouble=trouble)
    halted = RollStatus(state="halted", version="1.19.0", sha256="b" * 64, reason="2 died")
    row = status.row(heard(said(view=view, roll=halted)))
    assert row.notes[0] == "the roll of 1.19.0 halted: 2 died"
    assert row.notes[1].startswith("1 agents fail: port 10002, exited 1")
    assert not row.is_well


def test_stats_of_any_shape() -> None:
    full = {
        "active_nodes": 5,
        "total_nodes": 9,
        "networks": [{"id": 1, "name": "n", "members": 4, "online_members": 3}, 7],
    }
    found = counted(Doc(full))
    assert (found.online, found.total) == (5, 9)
    assert [(each.name, each.members, each.online) for each in found.networks] == [("n", 4, 3)]
    odds: list[Any] = [{}, {"active_nodes": "5"}, {"active_nodes": True}, [], None]
    for odd in odds:
        assert counted(Doc(odd)).online is None


def test_the_counts_of_a_named_dashboard(ops: Ops, stats: str) -> None:
    found = ops("--dashboard", stats, "status", "--json")
    assert (found.code, found.json["online"], found.json["registry_source"]) == (
        0,
        381,
        f"the dashboard at {stats}",
    )
    assert "network backbone: 380 of 400 online" in ops("--dashboard", stats, "status").out


def test_a_dashboard_behind_a_tunnel_counts_no_agents(
    ops: Ops, simulated: Simulated, stats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lead to another project's dashboard: nobody named it."""
    monkeypatch.setattr(fleets, "dashboard_url", lambda *_: stats)
    found = ops("status", "--json")
    assert (found.code, found.json["online"], found.json["registry_source"]) == (
        0,
        380,
        RENDEZVOUS,
    )
    assert f"network backbone: 380 of 400 online (says {stats})" in ops("status").out
    simulated.publish(RENDEZVOUS, "{}")
    found = ops("status", "--json")
    assert (found.code, found.json["online"], found.json["networks"]) == (1, None, [])
    assert found.json["registry_problem"].startswith(f"{RENDEZVOUS}: its status has")


def test_a_named_dashboard_that_does_not_answer_is_reported(ops: Ops) -> None:
    found = ops("--dashboard", "http://127.0.0.1:9", "status", "--json")
    assert found.code == 1
    assert found.json["online"] == 380
    assert "does not answer at http://127.0.0.1:9" in found.json["registry_problem"]


def test_top(ops: Ops, simulated: Simulated) -> None:
    found = ops("top", "swarm-1", "--json")
    assert found.json["memory"]["top"] == [{"port": 10001, "node_id": 7, "bytes": 9 << 20}]
    assert "9 MiB" in ops("top", "swarm-1").out
    assert "is the rendezvous" in ops("top", RENDEZVOUS).err
    gone = ops("top", "swarm-9")
    assert (gone.code, "there are pilot-rendezvous, swarm-1" in gone.err) == (3, True)
    simulated.publish("swarm-1", "{}")
    assert "schema" in ops("top", "swarm-1").err


def test_top_right_after_a_boot_says_that_nothing_was_measured(
    ops: Ops, simulated: Simulated
) -> None:
    node = simulated.nodes["swarm-1"]
    node.changes["sample"] = Sample(total=1 << 30, available=1 << 29, agent_limit=20 << 20)
    node.changes["uptime"] = 20.0
    simulated.tick()
    found = ops("top", "swarm-1")
    assert (found.code, found.out.count("\n")) == (0, 1)
    assert "nothing was measured yet: 120 of 120 agents run; it booted 20 s ago" in found.out
    assert ops("top", "swarm-1", "--json").json["memory"]["top"] == []
    node.running = 0
    node.holds = node.held_here = True
    simulated.tick()
    assert "nothing is measured: of 120 agents none runs (held)" in ops("top", "swarm-1").out
    # Once it was, and none is large.
    node.changes["sample"] = Sample(agent_limit=20 << 20, agent_mean=2 << 20, over=0)
    simulated.tick()
    assert ops("top", "swarm-1").out.startswith("mean 2 MiB; 0 above 20 MiB")


_LONG: Final = (
    "swarm-2: agents' sockets are gone and their last error is a sentence that goes on for longer "
    "than any line of a terminal has room for, as sentences of strangers do"
)


@pytest.mark.parametrize("command", ["status", "roll"])
def test_notes_are_readable_in_80_columns(
    simulated: Simulated, command: str, tmp_path: Path
) -> None:
    """On a real terminal: no line is longer, no word is cut, and no number is."""
    long = _LONG.removeprefix("swarm-2: ")
    simulated.nodes["swarm-2"].changes["last_error"] = Said(text=long, time=time.time())
    simulated.nodes["swarm-2"].roll = rolling(state="halted", reason=long)
    simulated.tick()
    lines = on_a_terminal(simulated, command, columns=80)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert long in text
    assert " swarm-2: " in text
    assert all(name in text for name in ("swarm-1", "swarm-3"))
    if command == "status":
        assert re.search(r"^swarm-2 .* 200 +200 +0 ", "\n".join(lines), re.MULTILINE)
        wide = on_a_terminal(simulated, command, columns=200)
        assert any(re.search(r"swarm-2 .* the roll of 1.19.0 halted", line) for line in wide)


def on_a_terminal(simulated: Simulated, command: str, *, columns: int) -> list[str]:
    """The output of a command on a terminal of this width, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    arguments = ["--endpoint", simulated.serving.url, "--project", "p1", command]
    with subprocess.Popen(
        [sys.executable, "-m", "ops", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=theirs,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        said = b""
        # The end of a terminal whose other end is closed is an error.
        with suppress(OSError):
            while piece := os.read(ours, 65536):
                said += piece
        os.close(ours)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1
    return re.sub(r"\x1b\[[0-9;]*m", "", said.decode()).splitlines()


@pytest.mark.parametrize("columns", [60, 80, 100, 140, 240])
def test_columns_that_a_narrow_table_leaves_out(columns: int) -> None:
    """The widest columns that say the least, and never the numbers of agents."""
    vm = heard(said(last_error=Said(text="e" * 30, time=NOW)))
    shown = io.StringIO()
    Console(width=columns, file=shown).print(status.render(picture_of(vm)))
    lines = shown.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= columns
    assert {"VM", "state", "wanted", "running", "failed", "left"} <= {*lines[0].split()}
    assert ("window" in lines[0]) == (columns >= 80)
    assert ("e" * 30) in shown.getvalue()


def test_which_fleet_and_which_project(ops: Ops, tmp_path: Path) -> None:
    assert ops("--fleet", "other", "status").err.startswith("ops: no VM has the label")

    with serve(tmp_path / "empty") as empty:
        assert main(["--endpoint", empty.url, "--project", "p2", "status"]) == 3
        assert main(["--endpoint", empty.url, "status"]) == 2
    assert main(["--endpoint", "http://10.0.0.1", "--project", "p2", "status"]) == 2
    assert main(["--endpoint", "ftp://127.0.0.1", "--project", "p2", "status"]) == 2


@pytest.mark.parametrize("code", [401, 403, 429, 500, 503])
def test_a_refusal_is_a_sentence(
    ops: Ops, simulated: Simulated, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "RETRY", google.RETRY.with_timeout(0.1))

    message = "Required 'compute.instances.list' permission for 'projects/p1'"
    body = {"error": {"code": code, "message": message, "errors": [{"message": message}]}}

    def refuse(request: Request) -> Response:
        return Response(body=body, status=code)

    simulated.serving.lab.answer = refuse  # type: ignore[method-assign]
    found = ops("status")
    assert found.code == 3
    assert found.err.startswith("ops: the VMs of project p1: ")
    if code == 403:
        assert "compute.instances.list is missing; it is in roles/compute.viewer" in found.err


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504, None])
def test_reads_are_retried(
    ops: Ops, simulated: Simulated, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: a connection that breaks."""
    asked = 0
    send = requests.adapters.HTTPAdapter.send

    def sometimes(*given: Any, **more: Any) -> requests.Response:
        nonlocal asked
        asked += 1
        if asked > 1:
            return send(*given, **more)
        if code is None:
            raise requests.ConnectionError("reset by peer")
        found = requests.Response()
        found.status_code, found.request = code, given[1]
        return found

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", sometimes)
    assert ops("status").code == 0
    assert asked > 1


def test_no_network_is_not_a_missing_login(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(google, "RETRY", google.RETRY.with_timeout(0.1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{free.getsockname()[1]}"
    login = Credentials(  # type: ignore[no-untyped-call]
        token=None,
        refresh_token="r",
        token_uri=f"http://{nowhere}/token",
        client_id="c",
        client_secret="s",
    )
    monkeypatch.setattr("google.auth.default", lambda **_: (login, "p1"))
    assert main(["--project", "p1", "status"]) == 3
    err = capfd.readouterr().err
    assert err == f"ops: the VMs of project p1: nobody answers at {nowhere}\n"


def test_a_hundred_vms(tmp_path: Path) -> None:
    """As many requests as VMs, and two: for all VMs, and for the way to the dashboard."""

    counts = {}
    for size in (10, 100):
        with serve(tmp_path / str(size)) as serving:
            fleet = Simulated(serving, {f"swarm-{number}": 2 for number in range(size - 1)})
            fleet.tick()
            fleet.asked.clear()
            start = time.monotonic()
            url = serving.url
            cloud = Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))
            found = status.picture(fleets.read(cloud))
            counts[size] = len(fleet.asked)
            measured(f"{size} VMs: {counts[size]} requests, {time.monotonic() - start:.2f} s")
            assert found.running == 2 * (size - 1)
            assert found.is_well
    assert counts == {10: 12, 100: 102}


def test_a_picture(ops: Ops, tmp_path: Path) -> None:
    file = tmp_path / "status.svg"
    assert ops("status", "--svg", str(file)).code == 0
    text = file.read_text()
    assert text.startswith("<svg")
    assert "swarm-3" in text
    assert "url(" not in text.replace("url(#", ""), "it fetches nothing"
    assert ops("status", "--svg", str(tmp_path / "no" / "folder")).code == 2


def _parts(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each field of a document."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield (*path, key)
            yield from _parts(value, (*path, key))


def test_a_status_of_a_newer_or_an_older_program_is_read() -> None:
    for facts_of in (facts.swarm, facts.rendezvous):
        whole = document(facts_of(now=NOW, last_error=Said(text="x", time=NOW)))
        paths = list(_parts(whole))
        assert ("script", "turn") in paths
        for path in paths:
            for change in ("without", "another", "more"):
                told = json.loads(encode(whole))
                part = told
                for name in path[:-1]:
                    part = part[name]
                if change == "without":
                    del part[path[-1]]
                elif change == "another":
                    # A word that this version does not know.
                    part[path[-1]] = "of-later"
                else:
                    part["later"] = {path[-1]: [1]}
                seen = heard(json.dumps(told))
                fleet = fleets.Fleet(
                    name="f", project="p", time=NOW, vms=(seen,), registry=RegistryCounts()
                )
                assert status.picture(fleet).rows[0].vm == "swarm-1"
                assert isinstance(watch.alerts(fleet, watch.Limits()), dict)
                if change == "more":
                    assert seen.speaks
                    assert status.picture(fleet).rows[0].is_well
