"""The metrics: Prometheus text, made of the status document alone (docs/CONTRACT.md, "Metrics").

So metrics and status cannot differ. The server listens on loopback only. Agents can reach it there,
and are not trusted: the number of connections and the time of each are bounded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from typing import Any, Final

from ..machine.thread_loop import ThreadLoop
from ..rollout.roll_state import HALTED, NONE, ROLLING, WAITING, WATCHING
from .status import Document

PORT: Final = 9095
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Seconds that a connection may take in all.
CONNECTION_SECONDS: Final = 5.0
# Connections at a time. Prometheus needs one.
CONNECTIONS: Final = 16
# Seconds between two attempts at a port that is taken.
AGAIN: Final = 10.0

ROLL_STATES: Final = (NONE, WAITING, ROLLING, WATCHING, HALTED)

Number = int | float
Labels = Mapping[str, str]


@dataclass(kw_only=True)
class _Text:
    """The exposition, line by line. A metric without a value is left out: absent is not 0."""

    lines: list[str] = field(default_factory=list)

    def one(self, name: str, help_text: str, value: Number | None) -> None:
        self.many(name, help_text, [({}, value)])

    def many(
        self, name: str, help_text: str, values: Iterable[tuple[Labels, Number | None]]
    ) -> None:
        there = [(labels, value) for labels, value in values if value is not None]
        if not there:
            return
        kind = "counter" if name.endswith("_total") else "gauge"
        # By its name a counter, but it is none.
        if name == "pilot_registry_total":
            kind = "gauge"
        self.lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        self.lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in there]

    def __str__(self) -> str:
        return "".join(f"{line}\n" for line in self.lines)


def text(document: Document) -> str:
    """The numbers in `document`, in Prometheus' text format 0.0.4."""
    out = _Text()
    now = _seconds(document["time"])
    _common(out, document)
    if "agents" in document:
        _swarm(out, document)
    if "registry" in document:
        _registry(out, document["registry"], now)
    return str(out)


def _common(out: _Text, document: Document) -> None:
    release, memory = document["release"], document["memory"]
    out.many(
        "pilot_release_info",
        "1 for the release that is accepted on this VM.",
        [({"version": release["version"], "sha256": release["sha256"]}, 1)],
    )
    out.many(
        "pilot_roll_state",
        "1 for the state that the roll is in.",
        [({"state": s}, int(document["roll"]["state"] == s)) for s in ROLL_STATES],
    )
    out.one("pilot_memory_total_bytes", "Memory of the VM, in bytes.", memory["total"])
    out.one(
        "pilot_memory_available_bytes",
        "Memory of the VM that is available, in bytes.",
        memory["available"],
    )
    disk = document["disk"]
    out.one("pilot_disk_device_bytes", "Size of the state disk, in bytes.", disk["device"])
    out.one(
        "pilot_disk_size_bytes", "Size of the state disk's file system, in bytes.", disk["size"]
    )
    out.one("pilot_disk_free_bytes", "Free space on the state disk, in bytes.", disk["free"])
    out.one(
        "pilot_ghosts",
        "Metadata keys of the VM and of its project that run undeclared scripts.",
        len(document["ghosts"]),
    )
    for name in ("spec", "script"):
        out.one(
            f"pilot_{name}_current",
            f"1 while the {name} is what it should be.",
            int(document[name]["state"] == "current"),
        )
    for state in ("waiting", "failed"):
        out.one(
            f"pilot_script_{state}",
            f"1 while a new script {'waits for its turn' if state == 'waiting' else state}.",
            int(document["script"]["state"] == state),
        )
    out.one(
        "pilot_orders_current",
        "1 while the orders are known: read, or absent.",
        int(document["orders"]["state"] in ("absent", "read")),
    )
    held = document["phase"] == "held" or document["orders"]["hold"]
    out.one("pilot_held", "1 while the VM is drained.", int(held))
    error = document["last_error"]
    out.one(
        "pilot_last_error_timestamp_seconds",
        "Time of the last error, in seconds since the epoch; 0 when there was none.",
        _seconds(error["time"]) if error else 0,
    )
    out.one(
        "pilot_node_start_time_seconds",
        "Time at which pilot-node started, in seconds since the epoch.",
        _seconds(document["node"]["started"]),
    )
    out.one(
        "pilot_status_timestamp_seconds",
        "Time of these numbers, in seconds since the epoch.",
        _seconds(document["time"]),
    )
    published = document["published"]
    out.one(
        "pilot_status_published_timestamp_seconds",
        "Time at which the guest attribute was last written, in seconds since the epoch; 0 when "
        "never.",
        _seconds(published["time"]) if published["time"] else 0,
    )
    out.one(
        "pilot_status_publish_failed",
        "1 while writing the guest attribute fails.",
        int(bool(published["error"])),
    )


def _swarm(out: _Text, document: Document) -> None:
    agents, memory, window = document["agents"], document["memory"], document["window"]
    out.many(
        "pilot_agents",
        "Agents of this VM, by state.",
        [
            ({"state": state}, agents[state])
            for state in ("wanted", "running", "starting", "stopping", "failed")
        ],
    )
    for what in ("starts", "stops", "failures"):
        out.one(
            f"pilot_agent_{what}_total",
            f"{what.capitalize()} of agents since pilot-node started.",
            document["totals"][what],
        )
    out.one("pilot_window_size", "Agents that may be starting at once, now.", window["size"])
    out.one("pilot_window_limit", "Agents that may be starting at once, at most.", window["limit"])
    out.one("pilot_memory_slice_bytes", "Memory of pilot.slice, in bytes.", memory["slice"])
    out.one(
        "pilot_agent_memory_mean_bytes",
        "Mean memory per agent (PSS of a sample), in bytes.",
        memory["agent_mean"],
    )
    out.one(
        "pilot_agents_over_limit",
        "Agents with more than twice the planned memory per agent.",
        memory["over"],
    )
    out.one(
        "pilot_memory_growth_bytes_per_hour",
        "Growth of all agents' memory, in bytes per hour.",
        memory["growth"],
    )
    out.one(
        "pilot_agent_grown_bytes",
        "What the mean agent has grown by since pilot-node started, in bytes; no start or stop of "
        "an agent is a step in it.",
        memory["grown"],
    )
    out.one("pilot_memory_leak", "1 while agents leak memory.", int(bool(memory["leak"])))
    out.one(
        "pilot_agent_connections_mean",
        "Mean connections per agent (a sample).",
        document["connections"]["mean"],
    )
    out.one("pilot_udp_sockets", "UDP sockets that are bound on the VM.", document["udp_sockets"])
    out.one(
        "pilot_bench_frozen",
        "1 while benchmarks are frozen or paused.",
        int(document["benchmarks"] in ("frozen", "paused")),
    )
    out.many(
        "pilot_wall_used_ratio",
        "Used part of a limit, 0 to 1. Only limits above 0.8.",
        [
            ({"wall": wall["wall"]}, wall["used"] / wall["limit"])
            for wall in document["walls"]
            if wall["limit"]
        ],
    )


def _registry(out: _Text, registry: Mapping[str, Any], now: float) -> None:
    out.one("pilot_registry_online", "Nodes that the registry has as online.", registry["online"])
    out.one("pilot_registry_total", "Nodes that the registry knows.", registry["total"])
    out.one(
        "pilot_registry_up", "1 while the registry answers.", int(registry["online"] is not None)
    )
    out.one("pilot_registry_store_bytes", "Size of the registry file, in bytes.", registry["store"])
    out.one(
        "pilot_registry_store_age_seconds",
        "Age of the registry file, in seconds.",
        _age(registry["store_time"], now),
    )
    out.one("pilot_registry_copies", "Good copies of the registry file.", registry["copies"])
    out.one(
        "pilot_registry_copy_age_seconds",
        "Age of the newest good copy, in seconds.",
        _age(registry["newest_copy"], now),
    )
    out.one(
        "pilot_registry_bucket_copy_age_seconds",
        "Age of the newest copy in the bucket, in seconds.",
        _age(registry["bucket"]["newest"], now),
    )
    out.one(
        "pilot_registry_set_aside",
        "Registry files that were set aside.",
        len(registry["set_aside"]),
    )


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: Number) -> str:
    return str(value) if isinstance(value, int) else repr(value)


def _seconds(time_text: str) -> int:
    return int(datetime.fromisoformat(time_text).timestamp())


def _age(time_text: str | None, now: float) -> int | None:
    # Not negative, also after the clock was set back.
    return None if time_text is None else max(0, int(now) - _seconds(time_text))


class _MetricsServer(ThreadingHTTPServer):
    """At most CONNECTIONS at a time, each for at most CONNECTION_SECONDS."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS

    def __init__(self, port: int, answer: Callable[[], str]) -> None:
        self.answer = answer
        self._open: dict[socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _MetricsHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._open) >= CONNECTIONS
            if not full:
                self._open[request] = time.monotonic() + CONNECTION_SECONDS
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        # Called in every turn of the server's loop. A timeout of the socket would begin anew at
        # each byte.
        with self._lock:
            late = [one for one, until in self._open.items() if until < time.monotonic()]
            for one in late:
                # Its place is free first: the client may connect again at once.
                del self._open[one]
                try:
                    one.shutdown(SHUT_RDWR)
                except OSError:
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client's mistake is not logged."""


class _MetricsHandler(BaseHTTPRequestHandler):
    timeout = CONNECTION_SECONDS
    server_version = "pilot-node"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404, "only /metrics is here")
            return
        assert isinstance(self.server, _MetricsServer)
        body = self.server.answer().encode()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not logged: there is one every 15 s."""


class Exporter:
    """Serves the newest document's metrics at http://127.0.0.1:PORT/metrics, from a thread.

    Where the port is taken, by an agent for example, this is logged once and tried again every
    AGAIN seconds. The rest of pilot-node does not wait for it.
    """

    def __init__(self, *, say: Callable[[str], None], port: int = PORT) -> None:
        self._say = say
        self._port = port
        self._document: Document | None = None
        self._said = ""
        self._lock = threading.Lock()
        self._server: _MetricsServer | None = None
        self._loop = ThreadLoop("metrics", self._step)

    def start(self) -> None:
        self._loop.start()

    def show(self, document: Document) -> None:
        """Serve the numbers of `document` from now on."""
        self._document = document

    @property
    def port(self) -> int | None:
        """The port, None while it is not open."""
        server = self._server
        return None if server is None else server.server_address[1]

    def close(self) -> None:
        with self._lock:
            self._loop.end()
            server = self._server
        if server is not None:
            server.shutdown()
        self._loop.join()

    def _answer(self) -> str:
        document = self._document
        return "" if document is None else text(document)

    def _step(self) -> float:
        """Serve until the end, where the port is free."""
        try:
            server = _MetricsServer(self._port, self._answer)
        except OSError as error:
            if str(error) != self._said:
                self._said = str(error)
                self._say(f"metrics: 127.0.0.1:{self._port}: {self._said}; tried again")
            return AGAIN
        with server:
            with self._lock:
                if self._loop.is_ending:
                    return AGAIN
                self._server = server
            server.serve_forever(0.5)
        return AGAIN
