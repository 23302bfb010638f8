"""The HTTP server of the API: sockets, routes and the log."""

import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from lab.cloud import NAME, tokens
from lab.cloud.compute.api import Compute
from lab.cloud.compute.operations import Operations
from lab.cloud.control import Control
from lab.cloud.errors import ApiError, not_implemented
from lab.cloud.iam import Policies, ResourceManager, ServiceAccounts
from lab.cloud.monitoring import MonitoringApi
from lab.cloud.secrets import Secrets
from lab.cloud.storage.api import Storage
from lab.cloud.store import Store, StoreError
from lab.cloud.web import FileSlice, Request, Response, Router
from lab.machines.driver import Driver, NoMachines

LOG = logging.getLogger("lab")

_SERVED: Final = ("/compute/", "/storage/", "/upload/", "/download/", "/v1/", "/v3/")
# Providers of 2022 take the version off a custom endpoint only where it is https, and so send the
# version of Resource Manager's paths twice.
_DOUBLED: Final = re.compile(r"^/v1/v1/")
_CHUNK: Final = 1024 * 1024
_IDLE_SECONDS: Final = 120.0  # a silent connection is closed after that time


class Lab:
    """All services over one state directory; answers requests without a socket."""

    def __init__(self, state: Path, driver: Driver | None = None) -> None:
        """Open the state and finish what the last process left."""
        self.driver: Driver = driver or NoMachines()
        self.store = Store(state)
        self.operations = Operations(self.store)
        self.compute = Compute(self.store, self.operations, self.driver)
        policies = Policies(self.store)
        self.storage = Storage(self.store, policies)
        self.unknown: list[str] = []
        """Requests (`METHOD PATH`) that no route answered."""
        self._router = Router(
            [
                *self.compute.routes(),
                *self.storage.routes(),
                *ResourceManager(self.store, policies).routes(),
                *ServiceAccounts(self.store, policies).routes(),
                *Secrets(self.store, policies).routes(),
                *MonitoringApi(self.store).routes(),
                *Control(self.store, self.driver, self.compute.away).routes(),
            ]
        )
        self.storage.recover()
        self.compute.recover()

    def close(self) -> None:
        """Wait for operations that run, then release the state."""
        self.operations.close()
        self.store.close()

    def answer(self, request: Request) -> Response:
        """Answer a request; every refusal is in Google's shape."""
        try:
            found = self._router.find(request.method, request.path)
            if found is None:
                raise self._nobody(request)
            caller = self._authenticate(request)
            handler, params = found
            decoded = {key: unquote(value) for key, value in params.items()}
            answer = handler(replace(request, params=decoded, caller=caller))
        except ApiError as error:
            return _refusal(error)
        except StoreError as error:
            return _refusal(ApiError(503, "backendError", str(error), "UNAVAILABLE"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # A field of a wrong type. Not a 500: providers repeat those for minutes, and the same
            # request would fail again.
            LOG.exception("%s %s", request.method, request.path)
            message = f"{type(error).__name__}: {error}; is a field of the wrong type?"
            return _refusal(ApiError(400, "badRequest", message))
        except Exception as error:
            LOG.exception("%s %s", request.method, request.path)
            message = f"{type(error).__name__} in the {NAME}; its log has the traceback"
            return _refusal(ApiError(500, "internalError", message))
        return answer if isinstance(answer, Response) else Response(body=answer)

    def _nobody(self, request: Request) -> ApiError:
        what = f"{request.method} {request.path}"
        self.unknown.append(what)
        LOG.error("NOT SERVED: %s (body: %d bytes)", what, len(request.body))
        if request.path.startswith(_SERVED):
            return not_implemented(what)
        return ApiError(404, "notFound", f"{what}: no such path in this {NAME}")

    def _authenticate(self, request: Request) -> str:
        """Return the service account of the request's token; empty for an operator."""
        # Clients of compute may be anonymous here; the other APIs take any token.
        kind, _, token = request.header("authorization").partition(" ")
        anonymous = kind.lower() != "bearer" or not token.strip()
        if anonymous and not request.path.startswith("/compute/"):
            message = (
                "Anonymous caller does not have access to this resource (or it may not exist);"
                " send a bearer token."
            )
            raise ApiError(401, "required", message)
        return "" if anonymous else tokens.account(self.store, token.strip())


def _refusal(error: ApiError) -> Response:
    headers = {"WWW-Authenticate": 'Bearer realm="local"'} if error.code == 401 else {}
    return Response(body=error.body(), status=error.code, headers=headers)


class _ApiServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, lab: Lab) -> None:
        super().__init__(listening.getsockname(), _ApiHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.lab = lab


class _ApiHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = NAME.replace(" ", "-")
    sys_version = ""
    timeout = _IDLE_SECONDS
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _ApiServer

    def _handle(self) -> None:
        url = urlsplit(self.path)
        query = {key: ",".join(each) for key, each in parse_qs(url.query, True).items()}
        try:
            body = self._read_body()
        except ValueError as error:
            self.close_connection = True
            self._send(_refusal(ApiError(400, "badRequest", str(error))))
            return
        request = Request(
            method=self.command,
            path=_DOUBLED.sub("/v1/", url.path),
            query=query,
            headers={key.lower(): value for key, value in self.headers.items()},
            body=body,
            base=f"http://{self.headers.get('Host', 'localhost')}",
        )
        self._send(self.server.lab.answer(request))

    # The names that http.server looks for.
    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._read_chunks()
        length = self.headers.get("Content-Length") or "0"
        if not length.isdigit():
            message = f"Content-Length is no number: {length}"
            raise ValueError(message)
        data = self.rfile.read(int(length))
        if len(data) != int(length):
            message = f"the body ends after {len(data)} of {length} bytes"
            raise ValueError(message)
        return data

    def _read_chunks(self) -> bytes:
        parts = []
        while True:
            size = int(self.rfile.readline(1024).split(b";")[0], 16)
            if size == 0:
                break
            part = self.rfile.read(size)
            if len(part) != size or self.rfile.readline(1024) != b"\r\n":
                message = "a chunk of the body is cut short"
                raise ValueError(message)
            parts.append(part)
        while self.rfile.readline(1024) not in (b"\r\n", b""):
            pass
        return b"".join(parts)

    def _send(self, response: Response) -> None:
        body = response.body
        headers = {"Content-Type": "application/json; charset=UTF-8", **response.headers}
        data = b""
        if isinstance(body, dict):
            data = json.dumps(body).encode()
        elif isinstance(body, bytes):
            data = body
        length = body.length if isinstance(body, FileSlice) else len(data)
        self.send_response(response.status)
        for key, value in headers.items():
            self.send_header(key, value)
        if response.status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if isinstance(body, FileSlice):
            self._send_file(body)
        elif self.command != "HEAD" and response.status not in (204, 304):
            self.wfile.write(data)
        self.wfile.flush()

    def _send_file(self, part: FileSlice) -> None:
        with part.file as file:
            file.seek(part.start)
            left = part.length
            while left and (data := file.read(min(left, _CHUNK))):
                self.wfile.write(data)
                left -= len(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (http.server's name)
        LOG.debug(format, *args)


class Serving:
    """A lab that is being served at `url` (`http://HOST:PORT`)."""

    def __init__(self, server: _ApiServer) -> None:
        self._server = server
        host, port = server.server_address[:2]
        self.url = f"http://{host!s}:{port}"
        self.lab = server.lab

    def settings(self) -> dict[str, str]:
        """Return the `gcp:` configuration that sends a Pulumi provider here."""
        return {
            "gcp:accessToken": "anything",
            "gcp:computeCustomEndpoint": f"{self.url}/compute/v1/",
            "gcp:storageCustomEndpoint": f"{self.url}/storage/v1/",
            "gcp:secretManagerCustomEndpoint": f"{self.url}/v1/",
            "gcp:monitoringCustomEndpoint": f"{self.url}/",
            "gcp:resourceManagerCustomEndpoint": f"{self.url}/v1/",
            # Older providers only: the current one makes service accounts at Google.
            "gcp:iamCustomEndpoint": f"{self.url}/v1/",
        }


def listen(port: int = 0, host: str = "127.0.0.1") -> socket.socket:
    """Take a port (0: a free one); OSError where it is taken. Connections wait for `serve`."""
    # Clients open dozens of connections at once; the default of 5 would refuse some.
    return socket.create_server((host, port), backlog=128)


@contextmanager
def serve(
    state: Path, listening: socket.socket | None = None, driver: Driver | None = None
) -> Iterator[Serving]:
    """Serve a lab with its state in `state` until the block ends, at a socket of `listen`.

    The socket is closed at the end; without one a free port is taken. StoreError where the state
    cannot be used.
    """
    listening = listening or listen()
    try:
        lab = Lab(state, driver)
    except BaseException:
        listening.close()
        raise
    try:
        server = _ApiServer(listening, lab)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Serving(server)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
    finally:
        lab.close()


def banner(serving: Serving) -> str:
    """Return the line that a start prints: the name, the URL and the driver."""
    return f"{NAME} at {serving.url}, {serving.lab.driver.description}"
