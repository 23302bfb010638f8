"""Tokens from Secret Manager, and the file that they are written to."""

from __future__ import annotations

import os
from pathlib import Path

from startup.node.rendezvous import access_tokens
from tests.startup.node.rendezvous.conftest import SecretManager


def test_tokens_are_fetched_and_bad_ones_reported(manager: SecretManager) -> None:
    base = "projects/p/secrets"
    manager.held[f"{base}/a/versions/latest"] = b"adm1n\n"
    manager.held[f"{base}/r/versions/3"] = b"two\nlines"
    names = {
        "admin": f"{base}/a/versions/latest",
        "dashboard": f"{base}/d/versions/latest",
        "replication": f"{base}/r/versions/3",
    }
    found = access_tokens.fetch(names, endpoint=manager.endpoint, token=lambda: "vm-token")
    assert found.values == {"admin": "adm1n"}
    assert "no version yet" in found.missing["dashboard"]
    assert "no token" in found.missing["replication"]
    assert found.refused == {"dashboard", "replication"}
    assert "two" not in found.problem
    assert "adm1n" not in repr(found)
    refused = access_tokens.fetch(names, endpoint=manager.endpoint, token=lambda: "other")
    assert "token is not accepted" in refused.missing["admin"]
    assert access_tokens.kept(refused, found).values == {"admin": "adm1n"}


def test_the_file_of_tokens_is_for_two(tmp_path: Path) -> None:
    path = tmp_path / "rendezvous.json"
    access_tokens.write(path, {"admin-token": "x"})
    assert path.stat().st_mode & 0o777 == 0o640
    if os.geteuid() == 0:
        assert (path.stat().st_uid, path.stat().st_gid) == (0, 610)
