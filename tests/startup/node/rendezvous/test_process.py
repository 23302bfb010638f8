"""The process by systemd, the journal and its own answers, and the judgement of it."""

from __future__ import annotations

import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from startup.node.desired.spec import RendezvousSpec, parse
from startup.node.rendezvous.process import Health, Judged, Process, SystemdUnit, ask, judge
from tests.startup import specs
from tests.startup.node.rendezvous.conftest import Journal
from tests.startup.node.rendezvous.fleet import Fleet

ACTIVE = Process(active="active", pid=7)

WELL = Health(answers=True, why="", online=5, total=5)


def test_a_start_that_answers_is_up_and_a_steady_one_is_forgiven() -> None:
    seen = judge(Judged(since=0, failures=1, why="exits"), ACTIVE, WELL, 3.0, 5)
    assert (seen.up, seen.failures) == (3.0, 1)
    assert judge(seen, ACTIVE, WELL, 64.0, 5).failures == 0


def test_one_that_exits_has_failed_each_time() -> None:
    seen = judge(Judged(since=0), replace(ACTIVE, active="activating", restarts=2), WELL, 3.0, 5)
    assert (seen.failures, seen.up) == (2, None)
    again = judge(seen, replace(ACTIVE, active="activating", restarts=2), WELL, 4.0, 5)
    assert again.failures == 2


def test_one_that_never_answers_hangs() -> None:
    mute = Health(why="refused")
    early = judge(Judged(since=0), ACTIVE, mute, 89.0, 5)
    assert early.failures == 0
    late = judge(early, ACTIVE, mute, 91.0, 5)
    assert late.failures == 1
    assert "refused" in late.why
    # One that was up and is busy is not touched.
    busy = judge(Judged(since=0, up=1.0), ACTIVE, mute, 500.0, 0)
    assert (busy.failures, busy.up) == (0, 1.0)


def test_on_trial_it_goes_on_answering() -> None:
    mute = Health(why="refused")
    seen = judge(Judged(since=0, up=1.0), ACTIVE, mute, 10.0, 0, trial=True)
    assert (seen.failures, seen.mute) == (0, 10.0)
    # A word in between, and its time begins anew.
    seen = judge(seen, ACTIVE, WELL, 29.0, 0, trial=True)
    seen = judge(seen, ACTIVE, mute, 31.0, 0, trial=True)
    assert (seen.failures, seen.mute) == (0, 31.0)
    seen = judge(seen, ACTIVE, mute, 51.0, 0, trial=True)
    assert (seen.failures, seen.why) == (2, "no answer for 20 s: refused")


def test_one_that_an_earlier_pilot_node_started_has_to_answer_too() -> None:
    mute = Health(why="refused")
    seen = judge(Judged(), ACTIVE, mute, 500.0, 0)
    assert (seen.since, seen.failures) == (500.0, 0)
    assert judge(seen, ACTIVE, mute, 591.0, 0).hangs


def test_one_that_lost_its_nodes_has_failed_at_once() -> None:
    seen = judge(Judged(since=0), ACTIVE, replace(WELL, total=1), 3.0, 40)
    assert seen.failures == 2
    assert "1 of the 40 nodes" in seen.why
    assert judge(Judged(since=0), ACTIVE, replace(WELL, total=None), 3.0, 40).failures == 0


def test_both_numbers_are_of_one_answer(fleet: Fleet) -> None:
    fleet.until(fleet.serving, "a rendezvous that serves")
    fleet.register(2)
    before = fleet.health()
    assert (before.online, before.total) == (2, 2)
    assert ask(fleet.spec, before, numbers=False) == before
    fleet.register(3, first=2)
    # Its nodes are not due, but another number is online.
    after = ask(fleet.spec, before, numbers=False)
    assert (after.online, after.total) == (5, 5)


EXIT = {"MESSAGE_ID": "98e322203f7a4ed290d09fe03c09fe15", "INVOCATION_ID": "b"}

RESULT = {"MESSAGE_ID": "d9b373ed55a64feb8242e02dbe79a49c", "INVOCATION_ID": "b"}

KILLED = {**EXIT, "EXIT_CODE": "killed", "EXIT_STATUS": "9"}

EXITED = {**EXIT, "EXIT_CODE": "exited", "EXIT_STATUS": "3"}


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([], ""),
        ([KILLED], "killed by SIGKILL"),
        ([KILLED, {**RESULT, "UNIT_RESULT": "signal"}], "killed by SIGKILL"),
        (
            [KILLED, {**RESULT, "UNIT_RESULT": "oom-kill"}],
            "killed by SIGKILL (the VM had no memory left)",
        ),
        (
            [KILLED, {**RESULT, "UNIT_RESULT": "oom-kill", "INVOCATION_ID": "a"}],
            "killed by SIGKILL",
        ),
        ([{**KILLED, "EXIT_STATUS": "15"}], "killed by SIGTERM"),
        ([{**KILLED, "EXIT_STATUS": "77"}], "killed by signal 77"),
        (
            [{**KILLED, "EXIT_CODE": "dumped", "EXIT_STATUS": "6"}],
            "killed by SIGABRT, dumping core: two",
        ),
        ([EXITED], "exit status 3: two"),
        ([KILLED, EXITED], "exit status 3: two"),
        ([EXITED, KILLED], "killed by SIGKILL"),
        ([{"EXIT_CODE": "exited", "EXIT_STATUS": "2"}], "exit status 2: two"),
        ([{**EXIT, "EXIT_CODE": ["binary"]}, 7], ""),
    ],
)
def test_how_a_process_ended_is_systemds_word_and_its_own_last_line(
    journal: Journal, records: list[Any], why: str
) -> None:
    journal.records.write_text("\n".join(["no json", *map(json.dumps, records)]))
    journal.lines.write_text("one\ntwo\n")
    assert SystemdUnit().last_end() == why
    asked = journal.asked.read_text().splitlines()
    assert {"UNIT=pilot-rendezvous.service", "--since=-90s"} < {*asked[0].split()}
    run = records[-1].get("INVOCATION_ID", "") if why.endswith("two") else ""
    # Whatever an earlier or a later one said is no reason for this end.
    assert f"_SYSTEMD_INVOCATION_ID={run} " in asked[-1] or not why.endswith("two")


def test_the_last_line_is_its_own_or_why_store_let_it_not_start(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.records.write_text(json.dumps(EXITED))
    journal.lines.write_text(f"one\ntwo\033[1m{1:0300}\n")
    found = SystemdUnit().last_end().removeprefix("exit status 3: ")
    assert len(found) == 200
    assert found.isprintable()
    words = journal.asked.read_text().split()
    assert {"--since=-90s", "--lines=100", "SYSLOG_IDENTIFIER=pilot-rendezvous"} < {*words}
    for lines, why in (
        ("one\npilot:   registry.json: 5 keys\n", "exit status 3: one"),
        (
            "one\npilot:   r: 5 keys\npilot: store: no room\n",
            "exit status 3: pilot: store: no room",
        ),
        ("pilot:   registry.json: 5 keys\n", "exit status 3"),
    ):
        journal.lines.write_text(lines)
        assert SystemdUnit().last_end() == why
    (journal.asked.parent / "journalctl").unlink()
    monkeypatch.setenv("PATH", str(journal.asked.parent))
    assert not SystemdUnit().last_end()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/stats", b'{"total_nodes": ' + b"9" * 5000 + b', "active_nodes": 4 }'),
        ("/healthz", b'{"nodes_online": ' + b"9" * 4000 + b"}"),
        ("/healthz", b"[" * 60_000),
    ],
    ids=["total", "online", "nested"],
)
def test_a_number_that_is_none_is_not_known(path: str, body: bytes) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == path
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(body if found else b"")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        spec = parse(specs.text(specs.rendezvous()))
        assert isinstance(spec, RendezvousSpec)
        port = server.server_port
        found = ask(replace(spec, registry_port=port, dashboard_port=port), Health(), numbers=True)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found.answers
    assert (found.online, found.total) == (4 if path == "/api/stats" else None, None)
