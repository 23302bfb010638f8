"""The registry's port of a running process: frames, order, crowds, the end of descriptors."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lab.standin.beacon import DISCOVERED, endpoint
from tests.lab.standin.client import (
    PATIENCE,
    ROOT,
    Client,
    Identity,
    Standin,
    standin,
    wait_for,
    whitelist,
)


def framed(message: object) -> bytes:
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def test_the_first_line_of_the_log_says_what_it_is(tmp_path: Path) -> None:
    with standin(tmp_path, "-log-level", "info") as running:
        assert "stand-in" in running.lines()[0]["msg"]
        assert running.stop() == 0
    quiet = [
        sys.executable,
        "-m",
        "lab.standin",
        "-log-level",
        "error",
        "-registry-addr",
        "x.invalid:1",
    ]
    run = subprocess.run(quiet, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    first, second = run.stderr.splitlines()
    assert "stand-in" in first
    assert "-registry-addr x.invalid:1" in second


def test_a_daemons_start_and_heartbeat(running: Standin) -> None:
    identity = Identity()
    with running.client() as client:
        node = client.ask(identity.register())["node_id"]
        assert client.ask({"type": "lookup", "node_id": node})["public_key"] == identity.key
        assert client.ask(identity.signed("heartbeat", node))["type"] == "heartbeat_ok"
        assert client.ask({"type": "what"}) == {
            "type": "error",
            "error": "unknown message type: what",
        }


def test_frames_in_pieces_and_in_one_piece(running: Standin) -> None:
    asked: list[dict[str, object]] = [{"type": "beacon_list"}, {"type": "list_networks"}]
    asked.append(Identity().register())
    data = b"".join(map(framed, asked))
    with running.client() as client:
        client.socket.sendall(data)
        assert [client.receive()["type"] for _ in asked] == [
            "beacon_list_ok",
            "list_networks_ok",
            "register_ok",
        ]
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            client.socket.sendall(bytes((byte,)))
        assert [client.receive()["type"] for _ in asked][-1] == "register_ok"


@pytest.mark.parametrize(
    "data",
    [b"PILT\x01", b"\0\1\0\1", b"\0\0\0\2{]", b"\0\0\0\2[]", b"\0\0\0\0", b"\0\0\0\4\xff\xfe\0\0"],
)
def test_a_connection_that_sends_no_json_frame_is_closed(running: Standin, data: bytes) -> None:
    with running.client() as client:
        client.socket.sendall(data)
        with pytest.raises(EOFError):
            client.receive()
    with running.client() as client:
        assert client.ask({"type": "beacon_list"})["type"] == "beacon_list_ok"


def test_deeply_nested_json_is_closed_too(running: Standin) -> None:
    body = b"[" * 60_000
    with running.client() as client:
        client.socket.sendall(len(body).to_bytes(4, "big") + body)
        with pytest.raises(EOFError):
            client.receive()


def test_a_client_that_reads_nothing_is_dropped_and_the_others_are_served(
    running: Standin,
) -> None:
    ask = framed({"type": "lookup", "node_id": 1}) * 1000
    with running.client() as greedy, running.client() as other:
        other.ask(Identity().register())
        greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.socket.settimeout(PATIENCE)
        # 17 MB of questions are 90 MB of answers: far more than sockets and MAX_UNSENT hold.
        with contextlib.suppress(OSError):
            greedy.socket.sendall(ask * 400)
        wait_for(lambda: running.count("pilot_connections") == 1, "the greedy one's being dropped")
        assert other.ask({"type": "beacon_list"})["type"] == "beacon_list_ok"


def test_connections_that_end_are_forgotten(running: Standin) -> None:
    clients = [running.client() for _ in range(50)]
    wait_for(lambda: running.count("pilot_connections") == 50, "50 connections")
    for client in clients:
        client.socket.close()
    wait_for(lambda: running.count("pilot_connections") == 0, "none")


def limited_to(descriptors: int) -> tuple[str, ...]:
    """The stand-in under a hard limit of descriptors."""
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, {(descriptors,) * 2});"
        "from lab.standin.__main__ import run; sys.exit(run())"
    )
    return sys.executable, "-c", code


@pytest.mark.engine  # waits for real timers
def test_at_its_limit_of_connections_it_goes_on(tmp_path: Path) -> None:
    whitelist(tmp_path)
    with standin(tmp_path, program=limited_to(96)) as running:
        assert running.running["descriptors"] == 96
        clients = [running.client() for _ in range(120)]
        served = clients[0].ask(Identity(owner="first").register())
        assert served["type"] == "register_ok"
        wait_for(lambda: running.count('pilot_events_total{event="accept_failures"}') > 0, "full")
        # The dashboard and the store have descriptors of their own.
        assert running.http("/api/snapshot", "POST").status == 200
        for client in clients[:110]:
            client.socket.close()
        assert clients[-1].ask(Identity(owner="last").register())["type"] == "register_ok"
        for client in clients:
            client.socket.close()


@pytest.mark.engine  # waits for real timers
def test_when_descriptors_run_out_it_stays_and_goes_on(tmp_path: Path) -> None:
    """The real one exits after ten accepts that fail (docs/FACTS.md)."""
    whitelist(tmp_path)
    with standin(tmp_path, program=limited_to(24)) as running:
        clients = [running.client() for _ in range(40)]
        wait_for(lambda: "Too many open files" in running.log.read_text(), "none being left")
        assert clients[0].ask({"type": "beacon_list"})["type"] == "beacon_list_ok"
        for client in clients:
            client.socket.close()
        with running.client() as client:
            assert client.ask({"type": "beacon_list"})["type"] == "beacon_list_ok"
        assert "Traceback" not in running.log.read_text()


def test_it_raises_its_own_limit_of_descriptors(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowered = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}));"
        "from lab.standin.__main__ import run; sys.exit(run())"
    )
    with standin(tmp_path, program=(sys.executable, "-c", lowered)) as running:
        assert running.running["descriptors"] == hard


def test_a_port_that_is_taken_is_said(tmp_path: Path, running: Standin) -> None:
    taken = f"127.0.0.1:{running.registry[1]}"
    command = [sys.executable, "-m", "lab.standin", "-registry-addr", taken]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f"-registry-addr {taken}: Address already in use" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_store_without_its_folder_is_said(tmp_path: Path) -> None:
    store = str(tmp_path / "absent" / "registry.json")
    command = [
        sys.executable,
        "-m",
        "lab.standin",
        "-registry-addr",
        "127.0.0.1:0",
        "-store",
        store,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "its folder does not exist" in run.stderr


def test_without_a_host_it_listens_everywhere(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with standin(tmp_path, registry=f":{port}") as running:
        for host in ("127.0.0.1", "127.0.0.9"):
            with Client((host, port)) as client:
                assert client.ask({"type": "beacon_list"})["type"] == "beacon_list_ok"
        assert running.process.poll() is None


def test_the_beacon_tells_an_address_and_ignores_the_rest(running: Standin) -> None:
    host, _, port = running.running["beacon"].rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(20)
        asker.bind(("127.0.0.1", 0))
        for data in (b"", b"\x05noise", b"\x01", b"\x01\0\0\0\7"):
            asker.sendto(data, (host, int(port)))
        own = asker.getsockname()
        assert asker.recv(100) == endpoint(DISCOVERED, "127.0.0.1", own[1])
    assert endpoint(DISCOVERED, "::ffff:10.0.0.1", 258) == b"\2\4\x0a\0\0\1\1\2"
