"""The HTTP port: what is shown to whom, and that it says what it is."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest

from lab.standin.dashboard import MAX_BODY, DashboardRequest
from tests.lab.standin.client import Identity, Standin, standin, whitelist


def registered(running: Standin, count: int) -> None:
    with running.client() as client:
        for index in range(count):
            answer = client.ask(Identity(owner=f"o{index}").register())
            assert answer["type"] == "register_ok"


def test_stats_have_the_fields_of_the_real_one(running: Standin) -> None:
    registered(running, 2)
    stats = running.stats()
    assert 0 <= stats.pop("uptime_secs") <= stats.pop("uptime_seconds")
    assert stats == {
        "total_nodes": 2,
        "active_nodes": 2,
        "total_trust_links": 0,
        "total_requests": 2,
        "unique_tags": 0,
        "networks": [{"id": 0, "name": "backbone", "members": 2, "online_members": 2}],
        "nodes": [
            {"address": f"0:0000.0000.000{n}", "online": True, "tags": [], "trust_links": 0}
            for n in (1, 2)
        ],
    }


@pytest.mark.engine  # waits for real timers
def test_a_silent_agent_counts_until_the_threshold_connected_or_not(tmp_path: Path) -> None:
    whitelist(tmp_path)
    with standin(tmp_path, "-stale-threshold", "4s") as running:
        beating, silent = Identity(owner="beating"), Identity(owner="silent")
        with running.client() as client, running.client() as other:
            node = client.ask(beating.register())["node_id"]
            other.ask(silent.register())
            other.socket.close()
            assert running.stats()["active_nodes"] == 2
            while running.stats()["active_nodes"] == 2:
                assert client.ask(beating.signed("heartbeat", node))["type"] == "heartbeat_ok"
            (still,) = [agent for agent in running.http("/agents").json if agent["online"]]
            assert (still["owner"], still["node_id"]) == ("beating", node)


def test_it_says_everywhere_that_it_is_a_stand_in(running: Standin) -> None:
    page = running.http("/")
    assert page.headers["server"].startswith("pilot-rendezvous-stand-in/")
    headline = page.body.decode().partition("<h1>")[2].partition("</h1>")[0]
    assert "stand-in" in headline
    for path in ("/api/stats", "/healthz", "/nothing"):
        assert "stand-in" in running.http(path).headers["server"]


def test_health(running: Standin) -> None:
    registered(running, 3)
    health = running.http("/healthz").json
    assert (health["status"], health["nodes_online"], health["stand_in"]) == ("ok", 3, True)


def test_metrics_are_prometheus_text(running: Standin) -> None:
    registered(running, 3)
    assert running.count("pilot_nodes_online") == 3
    assert running.count('pilot_requests_total{type="register"}') == 3
    for line in running.http("/metrics").body.decode().splitlines():
        assert line.startswith("# TYPE ") or len(line.split()) == 2


@pytest.mark.parametrize(
    ("peer", "headers", "local"),
    [
        ("127.0.0.1", {}, True),
        ("127.8.8.8", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("10.10.0.2", {}, False),
        ("10.10.0.2", {"x-real-ip": "127.0.0.1"}, False),
        ("127.0.0.1", {"x-real-ip": "10.10.0.2"}, False),
        ("127.0.0.1", {"x-real-ip": "nonsense"}, False),
        ("", {}, False),
    ],
)
def test_local_requests(peer: str, headers: Mapping[str, str], local: bool) -> None:
    request = DashboardRequest(
        method="GET", path="/", query={}, headers=headers, body=b"", peer=peer
    )
    assert request.local() is local


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/metrics"), ("POST", "/api/snapshot"), ("POST", "/knobs"), ("GET", "/agents")],
)
def test_paths_for_loopback_only(running: Standin, method: str, path: str) -> None:
    assert running.http(path, method).status == 200
    refused = running.http(path, method, headers={"X-Real-IP": "10.10.0.2"})
    assert (refused.status, refused.json["error"]) == (403, "loopback only")


def test_networks_need_the_token_if_there_is_one(tmp_path: Path) -> None:
    with standin(tmp_path, "-dashboard-token", "secret") as running:
        assert "networks" not in running.stats()
        assert "networks" not in running.http("/api/stats?token=wrong").json
        assert "networks" in running.http("/api/stats?token=secret").json
        bearer = {"Authorization": "Bearer secret"}
        assert "networks" in running.http("/api/stats", headers=bearer).json


def test_the_banner(tmp_path: Path) -> None:
    with standin(tmp_path, "-admin-token", "secret") as running:

        def put(body: object, token: str = "secret") -> int:
            return running.http("/api/banner", "PUT", body, {"X-Admin-Token": token}).status

        assert put(b"<b>restart</b> at ten") == 200
        assert "&lt;b&gt;restart&lt;/b&gt; at ten" in running.http("/").body.decode()
        assert (tmp_path / "banner.txt").read_text() == "<b>restart</b> at ten\n"
        assert put(b"forged", "wrong") == put(b"forged", "") == 403
        assert running.http("/api/banner").json == {"banner": "<b>restart</b> at ten"}
        assert put({"banner": "in JSON"}) == 200
        running.stop()
    with standin(tmp_path, "-admin-token", "secret") as running:
        assert running.http("/api/banner").json == {"banner": "in JSON"}
        answer = running.http("/api/banner", "PUT", b"", {"X-Admin-Token": "secret"})
        assert answer.json == {"banner": ""}
        assert not (tmp_path / "banner.txt").exists()
        assert 'class="banner"' not in running.http("/").body.decode()


def test_without_an_admin_token_nobody_sets_the_banner(running: Standin) -> None:
    assert running.http("/api/banner", "PUT", b"x", {"X-Admin-Token": ""}).status == 403


def test_wrong_paths_methods_and_requests(running: Standin) -> None:
    assert running.http("/nothing").status == 404
    answer = running.http("/api/snapshot")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    head = running.http("/api/stats", "HEAD")
    assert (head.status, head.body) == (200, b"")
    host, _, port = running.running["http"].rpartition(":")
    for raw in (
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /knobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /knobs HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1),
        b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), 20) as sock:
            sock.sendall(raw)
            answered = http.client.HTTPResponse(sock)
            answered.begin()
            assert answered.status == 400, raw[:40]
    assert running.http("/healthz").status == 200
    assert "Traceback" not in running.log.read_text()
