"""The relay of a QEMU guest."""

import socket
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

from lab.machines import places, processes, relay


def test_the_relay_carries_both_ways(tmp_path: Path) -> None:
    endpoint = tmp_path / "endpoint"
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(20)
        port = server.getsockname()[1]
        endpoint.write_text(f"127.0.0.1 {port}\n")

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                asked = b""
                while data := peer.recv(100):  # until the guest has said all
                    asked += data
                peer.sendall(b"you said " + asked)

        answering = threading.Thread(target=answer)
        answering.start()
        guest, end = socket.socketpair()
        command = [sys.executable, "-I", "-S", relay.__file__, str(endpoint)]
        relaying = subprocess.Popen(command, stdin=end.fileno(), stdout=end.fileno())
        with guest, processes.ending(relaying) as process:
            end.close()
            guest.settimeout(20)
            guest.sendall(b"x" * 70000)
            guest.shutdown(socket.SHUT_WR)
            heard = b""
            while data := guest.recv(65536):
                heard += data
            assert process.wait(20) == 0
        answering.join()
    assert heard == b"you said " + b"x" * 70000


def test_the_relay_does_not_wait_for_a_server_in_a_long_poll(tmp_path: Path) -> None:
    endpoint = tmp_path / "endpoint"
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        endpoint.write_text(f"127.0.0.1 {server.getsockname()[1]}\n")
        guest, end = socket.socketpair()
        command = [sys.executable, "-I", "-S", relay.__file__, str(endpoint)]
        relaying = subprocess.Popen(command, stdin=end.fileno(), stdout=end.fileno())
        with processes.ending(relaying) as process:
            end.close()
            peer, _ = server.accept()
            with peer:
                guest.close()
                assert process.wait(20) == 0


def test_the_relay_hangs_up_where_nobody_listens(tmp_path: Path) -> None:
    endpoint = tmp_path / "endpoint"
    assert relay.main(str(endpoint)) == 1
    endpoint.write_text(f"127.0.0.1 {places.free_port()}\n")
    assert relay.main(str(endpoint)) == 1
