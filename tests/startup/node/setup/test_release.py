"""Fetching a release: what is retried, what is final, and that nothing unverified is in place."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from startup.node import rendezvous_loop
from startup.node.desired import sources
from startup.node.desired.spec import Binary
from startup.node.machine import http_client
from startup.node.machine.metadata import MetadataServer
from startup.node.machine.paths import Paths
from startup.node.machine.retry import Bounds, FinalError, Retry, TemporaryError
from startup.node.setup import release
from tests.startup.conftest import Vm
from tests.startup.google import BUCKET, TOKEN, Failure, Google, cut_short, hang_up

DATA = b"\x7fELF" + os.urandom(2_500_000)


class Fetch:
    """One `ensure`, with a clock that only sleeping moves."""

    def __init__(self, google: Google, folder: Path) -> None:
        self.google = google
        self.opt = folder / "opt"
        self.now = 0.0
        self.said: list[str] = []
        reference = google.put("pilot-daemon", DATA)
        self.binary = Binary(name="pilot-daemon", **reference)
        self.path = release.path_of(self.binary, self.opt)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> bool:
        return release.ensure(
            self.binary,
            opt=self.opt,
            endpoint=f"http://{self.google.host}",
            bucket=BUCKET,
            token=MetadataServer(host=self.google.host).token,
            retry=Retry(
                bounds=Bounds(), say=self.said.append, clock=lambda: self.now, sleep=self.sleep
            ),
        )

    def left(self) -> list[str]:
        return [path.name for path in self.opt.rglob("*") if path.is_file()]


@pytest.fixture
def fetch(google: Google, tmp_path: Path) -> Fetch:
    return Fetch(google, tmp_path)


def test_it_is_fetched_once(fetch: Fetch) -> None:
    assert fetch()
    assert fetch.path.read_bytes() == DATA
    assert fetch.path.stat().st_mode & 0o777 == 0o755
    assert fetch.left() == ["pilot-daemon"]
    asked = len(fetch.google.requests)
    assert not fetch()
    assert len(fetch.google.requests) == asked


def test_a_full_disk_is_said_with_the_path(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"make room \(`df -h`.*{fetch.path}"):
        fetch()
    assert fetch.left() == []


def test_half_a_download_of_a_run_that_was_cut_off_goes(fetch: Fetch) -> None:
    fetch.path.parent.mkdir(parents=True)
    left = fetch.path.parent / ".pilot-daemon.x1y2"
    left.write_bytes(DATA[:1000])
    # Old enough to be nobody's; a fresh one may be another process's at work.
    os.utime(left, (0, 0))
    assert fetch()
    assert fetch.left() == ["pilot-daemon"]


def test_a_file_that_rotted_is_fetched_again(fetch: Fetch) -> None:
    assert fetch()
    fetch.path.write_bytes(DATA[:-1] + b"?")
    assert fetch()
    assert fetch.path.read_bytes() == DATA


@pytest.mark.parametrize("failure", [500, 503, 429, 408, 403, cut_short, hang_up])
def test_temporary_failures_are_retried(fetch: Fetch, failure: Failure) -> None:
    fetch.google.failures = {"/storage/": [failure, failure]}
    assert fetch()
    assert fetch.path.read_bytes() == DATA
    assert len(fetch.said) == 2
    assert fetch.now == 3
    assert fetch.left() == ["pilot-daemon"]


def test_a_token_that_comes_late(fetch: Fetch) -> None:
    fetch.google.failures = {"/token": [503, hang_up]}
    assert fetch()


def _gone(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(404)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def no_bucket(handler: BaseHTTPRequestHandler) -> None:
    _gone(handler, b'{"error": {"code": 404, "message": "The specified bucket does not exist."}}')


def no_object(handler: BaseHTTPRequestHandler) -> None:
    _gone(handler, f"No such object: {BUCKET}/releases/a".encode())


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (no_object, "404: .*has `pulumi up` uploaded this release"),
        (404, "404 .*not an answer of Cloud Storage"),
        (401, "401 .*token is not accepted"),
        (400, "400 .*not an answer of Cloud Storage"),
        (302, "302 .*not an answer of Cloud Storage"),
    ],
)
def test_final_failures_are_not_retried(fetch: Fetch, failure: Failure, said: str) -> None:
    fetch.google.failures = {"/storage/": [failure]}
    with pytest.raises(FinalError, match=rf"gs://{BUCKET}/releases/.*{said}"):
        fetch()
    assert fetch.google.count("/storage/") == 1
    assert fetch.left() == []


def test_a_denial_ends_within_its_bound(fetch: Fetch) -> None:
    """IAM is eventually consistent, but not for ever."""
    fetch.google.failures = {"/storage/": [403] * 1000}
    with pytest.raises(FinalError, match=r"403 .*roles/storage\.objectViewer.*gave up after"):
        fetch()
    assert 280 <= fetch.now <= 300


def test_a_corrupt_object_is_never_in_place(fetch: Fetch) -> None:
    fetch.google.objects[fetch.binary.object] = DATA[:-1] + b"?"
    with pytest.raises(FinalError, match=r"sha256 is [0-9a-f]{64}, the spec says"):
        fetch()
    assert fetch.left() == []
    assert fetch.google.count("/storage/") == 1


def test_a_corrupt_object_leaves_the_release_in_use(fetch: Fetch) -> None:
    assert fetch()
    release.use(fetch.binary, fetch.opt)
    other = Binary(name="pilot-daemon", **fetch.google.put("pilot-daemon", b"what was meant"))
    fetch.google.objects[other.object] = b"what is there"
    used, fetch.binary = fetch.binary, other
    with pytest.raises(FinalError):
        fetch()
    assert str((fetch.opt / "current").readlink()) == f"releases/{used.sha256}"
    assert (fetch.opt / "current" / "pilot-daemon").read_bytes() == DATA


def test_current_is_switched_in_one_rename(fetch: Fetch) -> None:
    fetch()
    assert release.use(fetch.binary, fetch.opt)
    assert not release.use(fetch.binary, fetch.opt)
    # Left behind by a crash between making the link and renaming it.
    (fetch.opt / ".current.new").symlink_to("nowhere")
    other = Binary(name="pilot-daemon", object="", sha256=hashlib.sha256(b"").hexdigest())
    assert release.use(other, fetch.opt)
    assert str((fetch.opt / "current").readlink()) == f"releases/{other.sha256}"


class Slow:
    """Answers with a head and then byte after byte, until it is let go."""

    def __init__(self, *, head: bool) -> None:
        self.head = head
        self.over = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        if self.head:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        while not self.over.wait(0.01):
            if self.head:
                try:
                    handler.wfile.write(b".")
                except OSError:
                    break
        handler.close_connection = True


def test_a_server_that_does_not_answer(google: Google) -> None:
    slow = Slow(head=False)
    google.failures = {"/x": [slow]}
    try:
        with (
            pytest.raises(TemporaryError, match="timed out"),
            http_client.get(f"http://{google.host}/x", {}, timeout=0.1),
        ):
            pass
    finally:
        slow.over.set()


def test_a_body_that_only_drips_has_a_deadline(google: Google) -> None:
    slow = Slow(head=True)
    google.failures = {"/x": [slow]}
    try:
        with (
            http_client.get(f"http://{google.host}/x", {}) as answer,
            pytest.raises(TemporaryError, match="not all there after 0 s"),
        ):
            list(answer.chunks(0.1))
    finally:
        slow.over.set()


def test_no_service_account(fetch: Fetch) -> None:
    fetch.google.failures = {"/token": [404]}
    with pytest.raises(FinalError, match="the VM has no service account"):
        fetch()


@pytest.mark.parametrize("status", ["missing", "corrupt"])
def test_the_script_stops_with_the_reason(vm: Vm, status: str) -> None:
    vm.use_swarm()
    vm.attach_disk()
    name = next(iter(vm.google.objects))
    if status == "missing":
        del vm.google.objects[name]
    else:
        vm.google.objects[name] += b"?"
    code, output = vm.run()
    assert code == 1
    assert f"gs://{BUCKET}/{name}" in output
    assert "pilot: release: gs://" in output
    assert 'FAILED in step "program, spec, release, units"' in output
    assert vm.read("/run/pilot/guard") == "working\n"
    assert not (vm.root / "opt/pilot/current").exists()
    assert not [call for call in vm.calls("systemctl") if "pilot-node" in call]
    assert TOKEN not in output


# The retry itself.


def test_a_retry_is_bounded_and_for_temporary_failures_only() -> None:
    now = 0.0
    said: list[str] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    retry = Retry(
        bounds=Bounds(limit=30, pause=1, pause_max=8),
        say=said.append,
        clock=lambda: now,
        sleep=sleep,
    )

    def away() -> None:
        raise TemporaryError("away")

    with pytest.raises(FinalError, match=r"it: away \(gave up after 23 s\)"):
        retry("it", away)
    # 1 + 2 + 4 + 8 + 8: another 8 would pass 30.
    assert now == 23
    assert len(said) == 5

    def wrong() -> None:
        raise FinalError("wrong")

    with pytest.raises(FinalError, match=r"^wrong$"):
        retry("it", wrong)
    assert now == 23


@pytest.mark.parametrize(
    ("answer", "said"),
    [("{}", "no access_token"), ("[]", "no access_token"), ('{"access_token": "a\\nb"}', "no")],
)
def test_an_answer_that_is_no_token(google: Google, answer: str, said: str) -> None:
    google.values["instance/service-accounts/default/token"] = answer
    metadata = MetadataServer(host=google.host)
    # The server's own answer is put aside for one from `values`.
    google._answer = lambda handler: (200, answer.encode(), {})  # type: ignore[method-assign]
    with pytest.raises(FinalError, match=said):
        metadata.token()


def test_absent_is_not_unreachable(google: Google) -> None:
    metadata = MetadataServer(host=google.host)
    assert metadata.value("instance/attributes/none") is None
    google.attributes["some"] = ""
    assert metadata.value("instance/attributes/some") == ""
    google.failures = {"some": [503]}
    with pytest.raises(TemporaryError):
        metadata.value("instance/attributes/some")
    google.failures = {"some": [403]}
    with pytest.raises(FinalError, match="does not look like Google's metadata server"):
        metadata.value("instance/attributes/some")


@pytest.mark.parametrize("host", ["h:99999", "a..b", "a" * 70])
def test_an_address_that_is_none_is_final(host: str) -> None:
    with pytest.raises(FinalError, match=re.escape(host)), http_client.get(f"http://{host}/", {}):
        pytest.fail("there is nothing there")


class Bucket:
    """A Fetcher, and one attempt of it."""

    def __init__(self, google: Google, opt: Path) -> None:
        self.said: list[str] = []
        self.fetcher = release.Fetcher(
            opt=opt,
            token=MetadataServer(host=google.host).token,
            say=self.said.append,
            wake=lambda: None,
        )
        self.binary = Binary(name="pilot-daemon", **google.put("pilot-daemon", DATA))
        self.fetcher.want(
            release.Wanted(binaries=(self.binary,), endpoint=f"http://{google.host}", bucket=BUCKET)
        )


@pytest.mark.parametrize(
    ("failure", "lost"),
    [(no_object, True)] + [(each, False) for each in (404, 401, 400, 503, no_bucket)],
)
def test_only_binaries_that_the_bucket_lacks_are_lost(
    google: Google, tmp_path: Path, failure: Failure, *, lost: bool
) -> None:
    bucket = Bucket(google, tmp_path)
    google.failures = {"/storage/": [failure, failure]}
    assert not bucket.fetcher.once()
    assert (bucket.binary.sha256 in bucket.fetcher.lost()) == lost
    assert bucket.binary.sha256 in bucket.fetcher.problems()
    assert not bucket.fetcher.once()
    assert len(bucket.said) == 1
    assert bucket.fetcher.once()
    assert not bucket.fetcher.lost()
    assert not bucket.fetcher.problems()


def test_another_object_is_a_lost_release(google: Google, tmp_path: Path) -> None:
    bucket = Bucket(google, tmp_path)
    google.objects[bucket.binary.object] = DATA[:-1] + b"?"
    assert not bucket.fetcher.once()
    assert bucket.binary.sha256 in bucket.fetcher.lost()
    # Refused is another thing than not there.
    google.failures = {"/storage/": [401]}
    assert not bucket.fetcher.once()
    assert not bucket.fetcher.lost()


def test_a_download_ends_at_its_limit(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "SIZE_LIMIT", 2 << 20)
    with pytest.raises(FinalError, match="more than 2 MiB"):
        fetch()
    assert fetch.left() == []


def test_no_releases_are_none_to_remove(tmp_path: Path) -> None:
    assert release.prune(tmp_path, ()) == []


def test_orders_of_a_bucket_that_is_gone_are_not_taken_back(google: Google) -> None:
    where = sources.OrdersPlace(endpoint=f"http://{google.host}", bucket=BUCKET, vm="swarm-1")
    ask = sources.OrdersPoller(server=MetadataServer(host=google.host), where=lambda: where)
    assert ask() is None
    google.failures = {"/storage/": [no_bucket]}
    with pytest.raises(FinalError, match="no such bucket"):
        ask()


def test_only_cloud_storage_takes_orders_back(google: Google) -> None:
    where = sources.OrdersPlace(endpoint=f"http://{google.host}", bucket=BUCKET, vm="swarm-1")
    ask = sources.OrdersPoller(server=MetadataServer(host=google.host), where=lambda: where)
    google.order("swarm-1", '{"schema": 1, "hold": true}')
    assert ask()
    google.order("swarm-1", None)
    # Of whoever answers at that address.
    google.failures = {"/storage/": [404]}
    with pytest.raises(FinalError, match=r"swarm-1\.json: 404 .*: not an answer of Cloud Storage"):
        ask()
    assert ask() is None


def test_json_without_end_is_an_answer_that_is_none(google: Google) -> None:
    server = MetadataServer(host=google.host)
    deep = b"[" * 100_000
    google._answer = lambda handler: (200, deep, {"ETag": "x"})  # type: ignore[method-assign]
    with pytest.raises(FinalError, match="not JSON"):
        sources.Attributes(server=server, path="instance/attributes")()
    with pytest.raises(FinalError, match="no access_token"):
        server.token()


def test_a_service_ends_with_any_of_its_threads() -> None:
    """Both roles' do: half of one would look whole."""
    code = (
        "import sys, threading, time\n"
        "from startup.node import base_loop\n"
        "base_loop.end_with_any_thread(lambda line: print(line, flush=True))\n"
        "threading.Thread(target=lambda: 1 / 0, name='fetch').start()\n"
        "threading.Event().wait(60)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 70
    assert done.stdout == "fetch died: ZeroDivisionError: division by zero; pilot-node ends\n"


_NODE = "import sys\nfrom startup.node import __main__ as node\n"
_UNITS = "sys.exit(node.main(['units']))\n"
_THREAD = (
    "import threading\n"
    "from startup.node import base_loop\n"
    "base_loop.end_with_any_thread(print)\n"
    "threading.Thread(target=lambda: 1 / 0).start()\n"
    "threading.Event().wait(20)\n"
)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (
            (
                f"{_NODE}node.NodeCommands.units = lambda self: [*map(self.say, 'ab' * 9000)]\n"
                f"{_UNITS}"
            ),
            0,
        ),
        (f"{_NODE}{_UNITS}", 1),
        (_THREAD, 70),
    ],
)
def test_a_closed_output_is_no_failure(tmp_path: Path, code: str, status: int) -> None:
    """As journald does at its 4,096th stream: agents may hold them all."""
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=write,
            stderr=write if code == _THREAD else subprocess.PIPE,
            env=os.environ | {"PILOT_ROOT": str(tmp_path)},
            check=False,
            timeout=60,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr or b"") == (status, b"")


def test_the_rendezvous_service_is_one_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):  # noqa: N818
        pass

    def asked(say: object) -> None:
        raise Asked

    monkeypatch.setattr(rendezvous_loop, "recall_spec", lambda paths: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(rendezvous_loop, "end_with_any_thread", asked)
    monkeypatch.setattr(
        rendezvous_loop, "Follower", lambda **_: pytest.fail("threads begin before")
    )
    with pytest.raises(Asked):
        rendezvous_loop.serve(Paths(), say=print)
