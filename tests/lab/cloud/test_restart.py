"""State that survives the end of the process, in whatever way it ends."""

import json
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

import pytest

from lab.cloud.server import Lab, serve
from lab.cloud.web import Request
from lab.machines.processes import ending
from tests.lab.cloud.client import COMPUTE, REGION, ZONE, Client, make_network, vm
from tests.lab.cloud.fake_drivers import PATIENCE, Recorder

ROOT = Path(__file__).resolve().parents[3]


def read_line(stream: IO[str]) -> str:
    ready, _, _ = select.select([stream], [], [], PATIENCE)
    assert ready, "the process says nothing"
    return stream.readline()


@contextmanager
def process(state: Path) -> Iterator[tuple["subprocess.Popen[str]", Client]]:
    """Run `python -m lab.cloud serve` until the block ends; it is killed if it still runs."""
    command = [
        sys.executable,
        "-m",
        "lab.cloud",
        "serve",
        "--state",
        str(state),
        "--print-settings",
    ]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with ending(running):
        assert running.stdout is not None
        line = read_line(running.stdout)
        assert line, running.communicate(timeout=PATIENCE)
        yield running, Client(json.loads(line)["url"])


def test_state_survives_a_stop_and_another_port(tmp_path: Path) -> None:
    with process(tmp_path / "state") as (running, client):
        make_network(client)
        client.do("POST", f"{ZONE}/instances", vm())
        client.do("POST", "/storage/v1/b?project=p1", {"name": "box"})
        client.upload("box", "a", b"data")
        before = client.get(f"{ZONE}/instances/vm")
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == 0
    with serve(tmp_path / "state") as serving:
        client = Client(serving.url)
        assert client.get(f"{ZONE}/instances/vm") == before
        assert client.call("GET", "/storage/v1/b/box/o/a?alt=media").data == b"data"
        client.do("POST", f"{ZONE}/instances", vm("second"))
        second = client.get(f"{ZONE}/instances/second")
        assert int(second["id"]) > int(before["id"])
        assert second["networkInterfaces"][0]["networkIP"] == "10.10.0.3"


def test_a_kill_between_two_writes_leaves_whole_resources(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made: list[str] = []
    for turn in range(3):
        with process(state) as (running, client):
            if turn == 0:
                make_network(client)
                client.do("POST", "/storage/v1/b?project=p1", {"name": "box"})
            made += kill_while_writing(running, client, turn)
    with serve(state) as serving:
        client = Client(serving.url)
        found = client.get(f"{ZONE}/instances?maxResults=500")["items"]
        names = {each["name"] for each in found}
        # What was answered is there; of what was not, all or nothing.
        assert set(made) <= names
        disks = {each["name"] for each in client.get(f"{ZONE}/disks")["items"]}
        assert disks == names
        addresses = [each["networkInterfaces"][0]["networkIP"] for each in found]
        assert len(set(addresses)) == len(found)
        assert len({each["id"] for each in found}) == len(found)
        for operation in client.get(f"{ZONE}/operations")["items"]:
            assert client.wait(operation)["status"] == "DONE"
        assert {each["status"] for each in client.get(f"{ZONE}/instances")["items"]} == {"RUNNING"}
        for each in client.get("/storage/v1/b/box/o")["items"]:
            answer = client.call("GET", f"/storage/v1/b/box/o/{each['name']}?alt=media")
            assert answer.data == each["name"].encode() * 1000
        blobs = list((state / "blobs").iterdir())
        assert len(blobs) == len(client.get("/storage/v1/b/box/o")["items"])


def kill_while_writing(running: "subprocess.Popen[str]", client: Client, turn: int) -> list[str]:
    """Write from four threads, kill the process in the middle; return what was answered."""
    made: list[str] = []
    enough = threading.Event()

    def write(thread: int) -> None:
        for number in range(1000):
            name = f"vm-{turn}-{thread}-{number}"
            try:
                client.do("POST", f"{ZONE}/instances", vm(name))
                made.append(name)
                client.upload("box", name, name.encode() * 1000)
            except (OSError, HTTPException):
                return
            if len(made) >= 8:
                enough.set()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert enough.wait(PATIENCE)
    running.kill()
    for thread in threads:
        thread.join(PATIENCE)
    return made


def request(method: str, path: str, body: Any = None) -> Request:
    data = b"" if body is None else json.dumps(body).encode()
    return Request(method=method, path=path, body=data, headers={"authorization": "Bearer x"})


def make_in(lab: Lab) -> None:
    for path, body in (
        (f"{COMPUTE}/global/networks", {"name": "net", "autoCreateSubnetworks": False}),
        (
            f"{REGION}/subnetworks",
            {"name": "sub", "ipCidrRange": "10.10.0.0/20", "network": "global/networks/net"},
        ),
    ):
        assert lab.answer(request("POST", path, body)).status == 200


def test_work_that_was_cut_off_is_done_at_the_next_start(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    make_in(lab)
    lab.operations.close()  # from here on nothing is worked on: as if killed right then
    answer = lab.answer(request("POST", f"{ZONE}/instances", vm()))
    assert isinstance(answer.body, dict)
    assert answer.body["status"] == "PENDING"
    lab.close()
    driver = Recorder()
    with serve(tmp_path, driver=driver) as serving:
        client = Client(serving.url)
        client.wait(answer.body)
        assert driver.calls == ["create_disk vm", "start vm"]
        assert client.get(f"{ZONE}/instances/vm")["status"] == "RUNNING"


@pytest.mark.parametrize(
    ("running", "status"), [(None, "RUNNING"), (True, "RUNNING"), (False, "TERMINATED")]
)
def test_machines_that_no_longer_run_are_terminated(
    tmp_path: Path, running: bool | None, status: str
) -> None:
    with serve(tmp_path) as serving:
        client = Client(serving.url)
        make_network(client)
        client.do("POST", f"{ZONE}/instances", vm())
    with serve(tmp_path, driver=Recorder(running=running)) as serving:
        assert Client(serving.url).get(f"{ZONE}/instances/vm")["status"] == status


def test_a_state_in_use_and_a_port_in_use_are_a_sentence(tmp_path: Path) -> None:
    with serve(tmp_path / "one") as serving:
        port = serving.url.rsplit(":", 1)[-1]
        for state, extra, said in (
            (tmp_path / "one", [], "is in use by process"),
            (tmp_path / "two", ["--port", port], "Address already in use"),
        ):
            command = [sys.executable, "-m", "lab.cloud", "serve", "--state", str(state), *extra]
            run = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert run.returncode == 1
            assert said in run.stderr
            assert "Traceback" not in run.stderr


def test_the_lab_knows_nothing_of_what_is_built_on_it() -> None:
    for path in sorted((ROOT / "lab" / "cloud").rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            assert "pilot" not in path.read_text(errors="replace").lower(), path
