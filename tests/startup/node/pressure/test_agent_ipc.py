"""An agent's IPC socket: the real daemon's, and strangers who answer anything or nothing."""

from __future__ import annotations

import json
import os
import platform
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from startup.node.pressure import agent_ipc
from startup.node.pressure.agent_ipc import Info, IpcError, info
from tests.lab.standin.client import standin, wait_for, whitelist
from tests.lab.standin.conftest import artifacts
from tests.lab.standin.test_daemons import Daemon, free_ports

__all__ = ["artifacts"]


def frame(kind: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 1) + bytes([kind]) + body


GOOD = frame(14, b'{"node_id":7,"connections":3}')


class Stranger:
    """Listens on a socket and does with each connection what it is told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "s"
        self.asked = b""
        self.does: Callable[[socket.socket], None] = lambda peer: peer.sendall(GOOD)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            with peer:
                peer.settimeout(10)
                try:
                    self.asked = peer.recv(100)
                    self.does(peer)
                except OSError:
                    # It was given up.
                    continue

    def stop(self) -> None:
        # close() alone would leave accept() waiting.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Stranger]:
    stranger = Stranger(tmp_path)
    yield stranger
    stranger.stop()


def test_asked_and_answered(stranger: Stranger) -> None:
    assert info(stranger.path) == Info(node_id=7, connections=3)
    assert stranger.asked == b"\0\0\0\1\x0d"


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_root_asks_as_the_sockets_owner_and_only_while_it_connects(stranger: Stranger) -> None:
    os.chown(stranger.path, 610, 610)
    seen: dict[str, int] = {}

    def look(peer: socket.socket) -> None:
        found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        seen["peer"] = struct.unpack("3i", found)[1]
        peer.sendall(GOOD)

    stranger.does = look
    assert info(stranger.path) == Info(node_id=7, connections=3)
    assert seen == {"peer": 610}
    assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_other_threads_keep_their_user() -> None:
    with ThreadPoolExecutor(1) as pool:
        # A thread inherits from the one that starts it, so it is there before.
        assert pool.submit(os.geteuid).result(20) == 0
        with agent_ipc._as(610):
            assert (os.geteuid(), pool.submit(os.geteuid).result(20)) == (610, 0)
    assert os.getresuid() == (0, 0, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else needs root")
def test_the_user_is_the_same_after_a_failure() -> None:
    def fails() -> None:
        with agent_ipc._as(610):
            assert os.getresuid() == (0, 610, 0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert os.getresuid() == (0, 0, 0)


def test_a_machine_that_is_not_known(stranger: Stranger, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming somebody else needs root")
    os.chown(stranger.path, 610, 610)
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(IpcError, match="pdp11 is not known"):
        info(stranger.path)


def test_events_come_in_between(stranger: Stranger) -> None:
    stranger.does = lambda peer: peer.sendall(frame(5, b"") + frame(9, b"x" * 9000) + GOOD)
    assert info(stranger.path) == Info(node_id=7, connections=3)


def test_in_pieces(stranger: Stranger) -> None:
    def pieces(peer: socket.socket) -> None:
        for byte in GOOD:
            peer.sendall(bytes([byte]))

    stranger.does = pieces
    assert info(stranger.path).node_id == 7


def many(number: int, value: object) -> bytes:
    found: object = value
    for _ in range(number):
        found = [found]
    return json.dumps(found).encode() if number < 900 else b"[" * number


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "hung up after 0 of 4 bytes"),
        (b"\0\0", "hung up after 2 of 4 bytes"),
        (frame(14, b"{}")[:-1], "hung up after 2 of 3 bytes"),
        (b"\0\0\0\0", "a frame of 0 bytes"),
        (b"\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (frame(5, b"x") * 9, "an answer to another question"),
        (frame(14, b""), "Expecting value"),
        (frame(14, b'"\xff"'), "codec"),
        (frame(14, many(200_000, 1)), "recursion"),
        (frame(14, b'{"node_id": ' + b"9" * 5000 + b"}"), "digits"),
        (frame(14, b"[]"), "no object"),
        (frame(14, b'{"connections":1}'), "node_id is no number"),
        (frame(14, b'{"node_id":true,"connections":1}'), "node_id is no number"),
        (frame(14, b'{"node_id":1.5,"connections":1}'), "node_id is no number"),
        (frame(14, b'{"node_id":4294967296,"connections":1}'), "node_id is no number"),
        (frame(14, b'{"node_id":1,"connections":-1}'), "connections is no number"),
        (frame(14, b'{"node_id":1,"connections":1000001}'), "connections is no number"),
    ],
)
def test_nonsense(stranger: Stranger, answer: bytes, why: str) -> None:
    stranger.does = lambda peer: peer.sendall(answer)
    with pytest.raises(IpcError, match=why) as caught:
        info(stranger.path)
    assert str(stranger.path) in str(caught.value)


def drip(peer: socket.socket) -> None:
    """A byte now and then, far more often than the time-out."""
    peer.sendall(b"\0\1\0\0")
    while True:
        peer.sendall(b"x")
        time.sleep(0.01)


@pytest.mark.parametrize("does", [drip, lambda peer: peer.recv(1)])
def test_an_agent_that_answers_too_slowly(
    stranger: Stranger, does: Callable[[socket.socket], None]
) -> None:
    stranger.does = does
    with pytest.raises(IpcError, match="timed out"):
        info(stranger.path, 0.2)


def test_an_agent_that_does_not_accept(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        with closing(socket.socket(socket.AF_UNIX)) as first:
            first.connect(str(tmp_path / "s"))
            with pytest.raises(IpcError):
                info(tmp_path / "s", 0.2)


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(IpcError, match="No such file"):
        info(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(IpcError, match="not a socket"):
        info(tmp_path / "file")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IpcError, match="not a socket"):
        info(tmp_path / "fifo")


def test_a_link_to_a_socket_of_somebody_else(stranger: Stranger, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(stranger.path)
    with pytest.raises(IpcError, match="not a socket"):
        info(tmp_path / "link")
    assert stranger.asked == b""


def test_nobody_listens(tmp_path: Path) -> None:
    """SIGKILL leaves a socket behind."""
    with closing(socket.socket(socket.AF_UNIX)) as one:
        one.bind(str(tmp_path / "s"))
    with pytest.raises(IpcError, match="refused"):
        info(tmp_path / "s")


def test_a_long_path(tmp_path: Path) -> None:
    """Longer than an address of this family: it is opened by descriptor."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with closing(socket.socket(socket.AF_UNIX)) as one:
            one.bind("s")
    finally:
        os.chdir(here)
    with pytest.raises(IpcError, match="refused"):
        info(folder / "s")


def test_it_leaves_nothing_open(stranger: Stranger) -> None:
    info(stranger.path)
    stranger.does = lambda peer: peer.sendall(b"\0\0\0\0")
    with pytest.raises(IpcError):
        info(stranger.path)
    # The socket itself, by its descriptor.
    opened = {os.path.realpath(name) for name in Path("/proc/self/fd").iterdir()}
    assert str(stranger.path) not in opened


@pytest.mark.engine
def test_the_real_daemon(artifacts: Path, tmp_path: Path) -> None:
    """The numbers are those that pilotctl prints."""
    whitelist(tmp_path)
    with standin(tmp_path) as running:
        host, port = running.registry
        daemon = Daemon(artifacts, tmp_path / "1", "agent-1@example.com", *free_ports(1))
        daemon.start(f"{host}:{port}")
        try:
            wait_for(daemon.ready, "its socket")
            found = info(daemon.socket)
            said = daemon.info()
            assert found == Info(node_id=said["node_id"], connections=said["connections"])
            assert found.node_id > 0
        finally:
            daemon.stop()
    with pytest.raises(IpcError):
        info(daemon.socket)
