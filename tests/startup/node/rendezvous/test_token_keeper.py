"""Tokens come and go; the registry goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

from startup.node.rendezvous.access_tokens import Tokens
from tests.startup.node.rendezvous.fleet import Fleet


def test_a_token_that_cannot_be_had_closes_the_dashboard_and_not_the_registry(
    fleet: Fleet,
) -> None:
    name = "projects/p/secrets/d/versions/latest"
    fleet.follower.declare(secrets={"dashboard": name})
    fleet.tokens = Tokens(missing={"dashboard": "403"})
    fleet.until(fleet.serving, "serving all the same")
    assert fleet.now >= 1030
    given = json.loads(fleet.paths.rendezvous_config.read_text())
    assert len(given["dashboard-token"]) > 30
    assert "dashboard token: 403" in str(fleet.status()["last_error"])
    before = fleet.unit.starts
    for _ in range(5):
        fleet.round()
    assert fleet.unit.starts == before
    fleet.tokens = Tokens(values={"dashboard": "t0ken"})
    fleet.until(lambda: fleet.unit.starts == before + 1 and fleet.serving(), "with the token")
    assert json.loads(fleet.paths.rendezvous_config.read_text()) == {"dashboard-token": "t0ken"}
    # It is away again: what was known stays.
    fleet.tokens = Tokens(missing={"dashboard": "503"})
    for _ in range(5):
        fleet.round()
    assert fleet.unit.starts == before + 1
    assert "t0ken" not in "\n".join(fleet.said)
    assert not re.search("t0ken", Path(f"/proc/{fleet.pid()}/cmdline").read_text())


def test_another_pilot_node_without_tokens_leaves_the_process_alone(fleet: Fleet) -> None:
    names = {what: f"projects/p/secrets/{what}/versions/latest" for what in ("admin", "dashboard")}
    known = {"admin": "adm1n", "dashboard": "t0ken"}
    fleet.follower.declare(secrets=names)
    fleet.tokens = Tokens(values=known)
    fleet.until(fleet.serving, "serving")
    pid, away = fleet.pid(), Tokens(missing=dict.fromkeys(names, "503"))
    for tokens in (None, away, Tokens(values=known)):
        fleet.tokens, fleet.it = tokens, fleet.service()
        for _ in range(5):
            fleet.round()
        assert fleet.pid() == pid, f"it was started again with {tokens}"
    fleet.tokens = Tokens(values={**known, "dashboard": "an0ther"})
    fleet.until(lambda: fleet.serving() and fleet.pid() != pid, "with another token")
    # Disabled: whoever fetched it goes on with it, and another pilot-node does not.
    pid = fleet.pid()
    fleet.tokens = Tokens(
        values={"admin": "adm1n"},
        missing={"dashboard": "400"},
        refused=frozenset({"dashboard"}),
    )
    for _ in range(5):
        fleet.round()
    assert fleet.pid() == pid
    fleet.it = fleet.service()
    fleet.until(lambda: fleet.serving() and fleet.pid() != pid, "closed")
    given = json.loads(fleet.paths.rendezvous_config.read_text())
    assert given["admin-token"] == "adm1n"
    assert given["dashboard-token"] not in known.values()
    assert len(given["dashboard-token"]) > 30
    # The one that nobody knows is no reason for another restart.
    pid, fleet.it = fleet.pid(), fleet.service()
    for _ in range(5):
        fleet.round()
    assert fleet.pid() == pid
