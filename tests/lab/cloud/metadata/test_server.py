"""The metadata server's sockets: there, away, closed."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException

import pytest

from lab.cloud.metadata.server import MetadataServers, MetadataServing, serve_metadata
from lab.cloud.server import Serving
from lab.machines.driver import Machine
from tests.lab.cloud.client import ZONE, Client, vm
from tests.lab.cloud.guest import (
    PATH,
    PATIENCE,
    WAIT,
    Guest,
    Looks,
    poll,
)


def test_away_is_not_absent(
    served: MetadataServing, guest: Guest, connect: Callable[[], Guest]
) -> None:
    assert guest.text("instance/name") == "vm"
    served.away()
    served.away()
    with pytest.raises((HTTPException, OSError)):
        guest.text("instance/name")
    with pytest.raises(ConnectionRefusedError):
        connect().text("instance/name")
    served.back()
    served.back()
    assert connect().text("instance/name") == "vm"
    assert connect().call("GET", "instance/attributes/nothing").status == 404


def test_being_away_cuts_long_polls(
    served: MetadataServing, guest: Guest, pool: ThreadPoolExecutor, looks: Looks
) -> None:
    waiting = poll(pool, guest, f"instance/name?{WAIT}")
    looks.reach(1)
    served.away()
    with pytest.raises((HTTPException, OSError)):
        waiting.result(PATIENCE)


def test_unavailable_is_said(
    served: MetadataServing, guest: Guest, connect: Callable[[], Guest]
) -> None:
    served.away(unavailable=True)
    answer = guest.call("GET", "instance/name")
    assert answer.status == 503
    assert b"temporarily unavailable" in answer.data
    served.away()
    with pytest.raises(ConnectionRefusedError):
        connect().text("instance/name")
    served.back()
    assert connect().text("instance/name") == "vm"


def test_closing_leaves_nothing(serving: Serving, cloud: Client) -> None:
    del cloud
    served = serve_metadata(serving.lab, PATH, ("127.0.0.1", 0))
    guest = Guest(served.address)
    assert guest.text("instance/name") == "vm"
    served.close()
    served.close()
    served.back()
    guest.connection.close()
    names = {each.name for each in threading.enumerate()}
    assert f"metadata {served.address[1]}" not in names
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(served.address)
        again.listen()


def test_a_bound_socket_and_a_peers_address(serving: Serving, cloud: Client) -> None:
    cloud.do("POST", f"{ZONE}/instances", vm("other"))
    owners = {"127.0.0.1": PATH, "127.0.0.2": PATH.replace("/vm", "/other")}
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    names = {}
    with serve_metadata(serving.lab, owners.get, listener):
        for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3"):
            guest = Guest(address)
            guest.connection.source_address = (source, 0)  # type: ignore[attr-defined]
            answer = guest.call("GET", "instance/name")
            names[source] = (answer.status, answer.data[:5])
            guest.connection.close()
    assert names["127.0.0.1"] == (200, b"vm")
    assert names["127.0.0.2"] == (200, b"other")
    assert names["127.0.0.3"][0] == 404


def test_a_socket_that_was_handed_over_comes_back_too(serving: Serving, cloud: Client) -> None:
    del cloud
    listener = socket.socket()  # without SO_REUSEADDR: old connections keep its port for a minute
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        address = first.getsockname()
    listener.bind(address)
    with serve_metadata(serving.lab, PATH, listener) as served:
        guest = Guest(address)
        assert guest.text("instance/name") == "vm"
        served.away()
        guest.connection.close()
        served.back()
        assert guest.text("instance/name") == "vm"
        guest.connection.close()


def test_a_port_that_is_taken_is_an_error(serving: Serving, served: MetadataServing) -> None:
    with pytest.raises(OSError, match="in use"):
        serve_metadata(serving.lab, PATH, served.address)


def machine(path: str) -> Machine:
    return Machine(path=path, id=1, hostname="h", vcpus=1, memory_mb=256, disks=(), nics=())


def test_servers_are_there_before_the_lab_and_serve_with_it(
    serving: Serving, cloud: Client
) -> None:
    del cloud
    servers = MetadataServers()
    early = servers.endpoint(machine(PATH))
    assert servers.endpoint(machine(PATH)) == early
    guest = Guest(early)
    with pytest.raises(ConnectionRefusedError):
        guest.text("instance/name")
    guest.connection.close()
    servers.attach(serving.lab)
    assert guest.text("instance/name") == "vm"
    late = servers.endpoint(machine(PATH.replace("/vm", "/later")))
    other = Guest(late)
    assert other.call("GET", "instance/name").status == 503  # no such instance (yet)
    servers.of(PATH).away()
    assert servers.endpoint(machine(PATH)) == early
    guest.connection.close()
    with pytest.raises(ConnectionRefusedError):
        guest.text("instance/name")
    servers.close()
    servers.close()
    for each in (guest, other):
        each.connection.close()
    with pytest.raises(ConnectionRefusedError):
        other.text("instance/name")
    unused = MetadataServers()
    unused.endpoint(machine(PATH))
    unused.close()
