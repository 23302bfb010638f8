"""Declared features that the binary does not support."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.standin.build import archive
from startup.node.rendezvous.access_tokens import Tokens
from startup.node.rendezvous.binary_features import words_of
from startup.node.report.status import Published, document
from startup.node.setup import release
from tests.startup.node.rendezvous.fleet import Fleet


def test_declared_features_that_the_binary_lacks_are_in_the_status(fleet: Fleet) -> None:
    def unsupported() -> Any:
        return document(fleet.it.facts(Published(), started=1.0))["registry"]["unsupported"]

    names = ("admin", "dashboard", "replication")
    fleet.tokens = Tokens(values=dict.fromkeys(names, "t0ken"))
    fleet.follower.declare(secrets={name: f"projects/p/secrets/{name}" for name in names})
    fleet.follower.order(banner="planned")
    assert unsupported() == [], "nothing is known of what does not run"
    fleet.until(fleet.serving, "serving")
    assert unsupported() == []
    # As the rendezvous of February 2026: no such flags, and any configuration taken in silence.
    old = archive().replace(b"admin-token", b"xdmin-token").replace(b"repl-token", b"rexl-token")
    old = old.replace(b"banner.txt", b"bxnner.txt").replace(b"dashboard-token", b"dxshboard-token")
    path = release.path_of(fleet.spec.binary, fleet.paths.opt)
    path.unlink()
    path.write_bytes(old)
    fleet.it = fleet.service()
    fleet.round()
    everything = ["banner", "tokens.admin", "tokens.dashboard", "tokens.replication"]
    assert unsupported() == everything
    fleet.follower.order()
    fleet.follower.declare(secrets={"dashboard": "projects/p/secrets/d"})
    assert unsupported() == ["tokens.dashboard"]


@pytest.mark.parametrize("content", [b"", b"\x7fELF packed", None])
def test_a_binary_that_tells_nothing_is_blamed_for_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "b").write_bytes(content)
    assert words_of(tmp_path / "b") is None
