"""The HTTP port: a page, /api/stats, /healthz, /metrics, snapshots, the banner, the knobs."""

from __future__ import annotations

import asyncio
import hmac
import html
import ipaddress
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from . import NOTICE, VERSION
from .beacon import Beacon
from .log import Log
from .registry import Registry
from .state import address_of
from .wire import Wire

SERVER: Final = f"pilot-rendezvous-stand-in/{VERSION}"
MAX_HEAD: Final = 16 * 1024
MAX_BODY: Final = 64 * 1024
TIMEOUT_SECONDS: Final = 10.0
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<title>{active} agents online - stand-in</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;margin:2em auto;max-width:40em;padding:0 1em}}
table{{border-collapse:collapse}}td{{padding:.2em 2em .2em 0}}td+td{{text-align:right}}
.note,.banner{{padding:.5em 1em;background:#fff3cd;border:1px solid #c90}}</style></head><body>
<h1>Pilot rendezvous: this is a stand-in</h1>
<p class="note">This page is served by {notice}. It counts real daemons, and nothing else of the
network is here.</p>{banner}
<table>
<tr><td>agents online</td><td>{active}</td></tr>
<tr><td>agents registered</td><td>{total}</td></tr>
<tr><td>connections</td><td>{connections}</td></tr>
<tr><td>requests</td><td>{requests}</td></tr>
<tr><td>up, in seconds</td><td>{uptime}</td></tr>
</table></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class DashboardRequest:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    peer: str

    def local(self) -> bool:
        """Whether the request comes from this machine, and no proxy names another client."""
        return _loopback(self.peer) and _loopback(self.headers.get("x-real-ip", self.peer))


@dataclass(frozen=True)
class DashboardResponse:
    status: int
    body: bytes
    kind: str = _JSON
    headers: Mapping[str, str] = field(default_factory=dict)


class MalformedError(Exception):
    """The bytes are no HTTP request that can be answered."""


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    except ValueError:
        return False


def _answer(content: object, status: int = HTTPStatus.OK) -> DashboardResponse:
    return DashboardResponse(status, json.dumps(content).encode() + b"\n")


def _failure(status: int, text: str) -> DashboardResponse:
    return _answer({"error": text}, status)


class Dashboard:
    """Answers HTTP requests about one registry. `snapshot` saves the store and gives its bytes."""

    def __init__(
        self,
        registry: Registry,
        wire: Wire,
        beacon: Beacon,
        *,
        log: Log,
        snapshot: Callable[[], Awaitable[int]],
        turn: Callable[[Mapping[str, object]], None],
        banner: Path | None,
        admin_token: str = "",
        dashboard_token: str = "",
    ) -> None:
        self._registry = registry
        self._wire = wire
        self._beacon = beacon
        self._log = log
        self._snapshot = snapshot
        self._turn = turn
        self._banner_file = banner
        self._banner = ""
        self._admin_token = admin_token
        self._dashboard_token = dashboard_token

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, one answer, closed; for asyncio.start_server with limit=MAX_HEAD."""
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        method = "GET"
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                try:
                    request = await _read(reader, peer)
                    method = request.method
                    response = await self.respond(request)
                except MalformedError as error:
                    response = _failure(HTTPStatus.BAD_REQUEST, str(error))
                writer.write(_rendered(response, body=method != "HEAD"))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return  # the client has gone, or never finished its request
        finally:
            writer.close()

    async def respond(self, request: DashboardRequest) -> DashboardResponse:
        methods, act = self._routes().get(request.path, ((), None))
        if act is None:
            return _failure(HTTPStatus.NOT_FOUND, f"{request.path}: there is nothing here")
        method = "GET" if request.method == "HEAD" else request.method
        if method not in methods:
            refused = _failure(HTTPStatus.METHOD_NOT_ALLOWED, f"use {' or '.join(methods)}")
            return DashboardResponse(
                refused.status, refused.body, headers={"Allow": ", ".join(methods)}
            )
        return await act(request)

    def _routes(
        self,
    ) -> Mapping[
        str, tuple[tuple[str, ...], Callable[[DashboardRequest], Awaitable[DashboardResponse]]]
    ]:
        return {
            "/": (("GET",), self._page),
            "/healthz": (("GET",), self._health),
            "/metrics": (("GET",), self._metrics),
            "/api/stats": (("GET",), self._stats),
            "/api/snapshot": (("POST",), self._save),
            "/api/banner": (("GET", "PUT"), self._banner_of),
            "/knobs": (("GET", "POST"), self._knobs),
            "/agents": (("GET",), self._agents),
        }

    async def _page(self, _: DashboardRequest) -> DashboardResponse:
        text = self._read_banner()
        page = _PAGE.format(
            notice=html.escape(NOTICE),
            banner=f'<p class="banner">{html.escape(text)}</p>' if text else "",
            active=self._registry.active(),
            total=len(self._registry.state.nodes),
            connections=len(self._wire.connections),
            requests=self._registry.state.total_requests,
            uptime=self._uptime(),
        )
        return DashboardResponse(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")

    async def _health(self, _: DashboardRequest) -> DashboardResponse:
        return _answer(
            {
                "status": "ok",
                "nodes_online": self._registry.active(),
                "uptime_secs": self._uptime(),
                "stand_in": True,
            }
        )

    async def _stats(self, request: DashboardRequest) -> DashboardResponse:
        """The fields of FACTS, no more; networks only with the token, if there is one."""
        state = self._registry.state
        active = self._registry.active()
        since = time.time() - self._registry.stale
        links = Counter(node for pair in state.trust_pairs for node in pair)
        answer: dict[str, object] = {
            "total_nodes": len(state.nodes),
            "active_nodes": active,
            "total_trust_links": len(state.trust_pairs),
            "total_requests": state.total_requests,
            "unique_tags": 0,
            "networks": [
                {
                    "id": 0,
                    "name": "backbone",
                    "members": len(state.nodes),
                    "online_members": active,
                }
            ],
            "nodes": [
                {
                    "address": address_of(node.id),
                    "online": node.last_seen >= since,
                    "tags": [],
                    "trust_links": links[node.id],
                }
                for node in state.nodes.values()
            ],
            # The name of older ones and that of newer ones.
            "uptime_secs": self._uptime(),
            "uptime_seconds": self._uptime(),
        }
        # Absent where there are none, as in the real one's.
        relayed = {
            "relay_forwarded": self._beacon.forwarded,
            "relay_not_found": self._beacon.not_found,
        }
        answer.update((name, count) for name, count in relayed.items() if count)
        if self._dashboard_token and not self._shown_token(request):
            del answer["networks"]
        return _answer(answer)

    def _shown_token(self, request: DashboardRequest) -> bool:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        given = request.query.get("token", [""])[0] or bearer
        return hmac.compare_digest(given.encode(), self._dashboard_token.encode())

    async def _metrics(self, request: DashboardRequest) -> DashboardResponse:
        if not request.local():
            return _failure(HTTPStatus.FORBIDDEN, "loopback only")
        registry = self._registry
        lines = [
            "# TYPE pilot_standin gauge",
            f'pilot_standin{{version="{VERSION}"}} 1',
            "# TYPE pilot_nodes_total gauge",
            f"pilot_nodes_total {len(registry.state.nodes)}",
            "# TYPE pilot_nodes_online gauge",
            f"pilot_nodes_online {registry.active()}",
            "# TYPE pilot_pubkeys_total gauge",
            f"pilot_pubkeys_total {len(registry.state.ids)}",
            "# TYPE pilot_connections gauge",
            f"pilot_connections {len(self._wire.connections)}",
            "# TYPE pilot_uptime_seconds gauge",
            f"pilot_uptime_seconds {self._uptime()}",
            "# TYPE pilot_requests_total counter",
            *(
                f'pilot_requests_total{{type="{kind}"}} {count}'
                for kind, count in sorted(registry.requests.items())
            ),
            "# TYPE pilot_events_total counter",
            *(
                f'pilot_events_total{{event="{event}"}} {count}'
                for event, count in sorted(registry.events.items())
            ),
        ]
        return DashboardResponse(
            HTTPStatus.OK, ("\n".join(lines) + "\n").encode(), "text/plain; version=0.0.4"
        )

    async def _save(self, request: DashboardRequest) -> DashboardResponse:
        if not request.local():
            return _failure(HTTPStatus.FORBIDDEN, "loopback only")
        try:
            size = await self._snapshot()
        except OSError as error:
            return _failure(HTTPStatus.INTERNAL_SERVER_ERROR, f"snapshot failed: {error}")
        return _answer({"status": "ok", "bytes": size})

    async def _banner_of(self, request: DashboardRequest) -> DashboardResponse:
        if request.method != "PUT":
            return _answer({"banner": self._read_banner()})
        given = request.headers.get("x-admin-token", "")
        if not self._admin_token or not hmac.compare_digest(
            given.encode(), self._admin_token.encode()
        ):
            return _failure(HTTPStatus.FORBIDDEN, "X-Admin-Token does not match -admin-token")
        text = request.body.decode(errors="replace").strip()
        if text.startswith("{"):
            try:
                content = json.loads(text)
            except ValueError:
                return _failure(HTTPStatus.BAD_REQUEST, "no JSON")
            text = str(content.get("banner", content.get("message", "")))
        self._write_banner(text)
        self._log.info("banner set", banner=text)
        return _answer({"banner": text})

    def _read_banner(self) -> str:
        if self._banner_file is None:
            return self._banner
        try:
            return self._banner_file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def _write_banner(self, text: str) -> None:
        self._banner = text
        if self._banner_file is None:
            return
        if not text:
            self._banner_file.unlink(missing_ok=True)
            return
        temporary = self._banner_file.with_name(self._banner_file.name + ".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, self._banner_file)  # noqa: PTH105 - as in store.py: one rename

    async def _knobs(self, request: DashboardRequest) -> DashboardResponse:
        if not request.local():
            return _failure(HTTPStatus.FORBIDDEN, "loopback only")
        if request.method == "POST":
            try:
                wanted = json.loads(request.body or b"{}")
            except ValueError:
                return _failure(HTTPStatus.BAD_REQUEST, "no JSON")
            if not isinstance(wanted, dict):
                return _failure(HTTPStatus.BAD_REQUEST, "must be a JSON object of knobs")
            reset = wanted.pop("reset_peak", False)
            try:
                self._turn(wanted)
            except ValueError as error:
                return _failure(HTTPStatus.BAD_REQUEST, str(error))
            if reset:
                self._wire.open.reset()
        return _answer(
            {
                "knobs": self._registry.knobs.shown(),
                "registrations": self._wire.open.shown(),
            }
        )

    async def _agents(self, request: DashboardRequest) -> DashboardResponse:
        """For tests; the real one has no such page: every node, its owner, its requests."""
        if not request.local():
            return _failure(HTTPStatus.FORBIDDEN, "loopback only")
        now = time.time()
        return _answer(
            [
                {
                    "node_id": node.id,
                    "owner": node.owner,
                    "endpoint": node.address,
                    "public_key": node.key,
                    "version": node.version,
                    "silent_secs": round(now - node.last_seen, 3),
                    "online": node.last_seen >= now - self._registry.stale,
                }
                for node in self._registry.state.nodes.values()
            ]
        )

    def _uptime(self) -> int:
        return int(time.time() - self._registry.state.started)


async def _read(reader: asyncio.StreamReader, peer: str) -> DashboardRequest:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise MalformedError(f"headers of more than {MAX_HEAD} bytes") from None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    try:
        method, target, _ = first.split(" ")
    except ValueError:
        raise MalformedError("no request line") from None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdigit() or int(length) > MAX_BODY:
        raise MalformedError(f"a body needs a Content-Length, at most {MAX_BODY}")
    url = urlsplit(target)
    return DashboardRequest(
        method=method,
        path=url.path,
        query=parse_qs(url.query),
        headers=headers,
        body=await reader.readexactly(int(length)),
        peer=peer,
    )


def _rendered(response: DashboardResponse, *, body: bool) -> bytes:
    status = HTTPStatus(response.status)
    head = {
        "Server": SERVER,
        "Content-Type": response.kind,
        "Content-Length": str(len(response.body)),
        "Cache-Control": "no-store",
        "Connection": "close",
        **response.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    start = f"HTTP/1.1 {status.value} {status.phrase}\r\n{lines}\r\n".encode()
    return start + response.body if body else start
