"""`make lab`, without a machine: whose lab it is, what it mends, and how it is interrupted."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from demo import __main__ as demo
from demo.__main__ import DemoError
from lab.drivers import processes
from lab.server import Serving, serve
from tests.lab.client import Client, vm
from tests.lab.fake_drivers import PATIENCE, Gated, Recorder
from toolchain import commands

CONFIG = demo.fleet()
ZONE = f"/compute/v1/projects/{CONFIG.project}/zones/{CONFIG.zone}"


def make_vms(client: Client, *names: str) -> None:
    """Make VMs in the fleet's place."""
    project = f"/compute/v1/projects/{CONFIG.project}"
    network = {"name": "net", "autoCreateSubnetworks": False}
    client.do("POST", f"{project}/global/networks", network)
    subnet = {"name": "sub", "ipCidrRange": "10.10.0.0/20", "network": "global/networks/net"}
    client.do("POST", f"{project}/regions/us-central1/subnetworks", subnet)
    for name in names:
        client.do("POST", f"{ZONE}/instances", vm(name))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a lab that is not served: nobody listens at its API."""
    folder = tmp_path / ".lab"
    folder.mkdir()
    monkeypatch.setattr(demo, "STATE", folder)
    monkeypatch.setattr(demo, "API", "http://127.0.0.1:9")
    monkeypatch.delenv("LAB_DRIVER", raising=False)
    return folder


@pytest.fixture
def served(state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """This checkout's lab, with two of the fleet's VMs in it."""
    with serve(state) as serving:
        make_vms(Client(serving.url), "swarm-1", "swarm-2")
        monkeypatch.setattr(demo, "API", serving.url)
        yield serving


# Whose lab it is


def test_the_lab_of_another_checkout_is_named_and_left_alone(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path / "other") as serving:
        monkeypatch.setattr(demo, "API", serving.url)
        for word in ("up", "status"):
            assert demo.main([word]) == 1
            said = capsys.readouterr().err
            assert f"is the lab in {tmp_path / 'other'}: end that one first" in said
        assert demo.main(["down"]) == 0
        assert Client(serving.url).get("/lab/status")["instances"] == {}
    assert not state.exists()


def test_a_state_behind_a_link_is_this_checkouts(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "STATE", tmp_path / "link")
    demo.STATE.symlink_to(state)
    with serve(demo.STATE) as serving:
        monkeypatch.setattr(demo, "API", serving.url)
        assert demo.lab_status() is not None


@pytest.mark.parametrize("serving", [True, False])
def test_machines_of_another_driver_are_named_before_anything_is_done(
    state: Path,
    serving: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (state / "driver").write_text("container\n")
    monkeypatch.setattr(demo, "run", lambda *_, **__: pytest.fail("something was done"))
    if serving:
        monkeypatch.setattr(demo, "lab_status", lambda: {"driver": "containers"})
    else:
        (state / "machines" / "p_z_vm").mkdir(parents=True)
        (state / "machines" / "p_z_vm" / "machine.json").write_text("{}")
    assert demo.main(["up"]) == 1
    said = capsys.readouterr().err
    assert "a lab with the container driver is here: `make lab-down` first" in said
    assert "LAB_DRIVER=container make lab" in said
    monkeypatch.setenv("LAB_DRIVER", "container")
    demo.refuse_another(demo.driver())


def test_what_is_left_of_no_machines_stops_nobody(state: Path) -> None:
    demo.refuse_another("qemu")
    (state / "driver").write_text("container\n")
    demo.refuse_another("qemu")


def test_what_is_quickly_found_missing_comes_before_what_takes_minutes(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def run(command: list[str], **_: object) -> None:
        done.append(" ".join(command[1:]))
        if command[-1] == "ensure":
            raise DemoError("no Go")

    monkeypatch.setattr(demo, "run", run)
    with pytest.raises(DemoError, match="no Go"):
        demo.up()
    packages = "-m lab prepare --driver qemu --packages"
    assert done == [packages, "toolchain/toolchain.py ensure"]


@pytest.mark.parametrize("text", [b"config: {pilot-fleet:swarm: 3}", b"a: [", b"\xff", None])
def test_a_stack_file_that_says_no_fleet_is_a_sentence(
    state: Path,
    tmp_path: Path,
    text: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    if text is not None:
        (tmp_path / "Pulumi.lab.yaml").write_bytes(text)
    for word in ("up", "status"):
        assert demo.main([word]) == 1
        assert capsys.readouterr().err.startswith("lab: Pulumi.lab.yaml: ")


# VMs that are off


def test_vms_that_are_off_are_started_and_named(
    served: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client(served.url)
    client.do("POST", f"{ZONE}/instances/swarm-2/stop")
    client.do("POST", f"{ZONE}/instances", vm("somebody-elses"))
    client.do("POST", f"{ZONE}/instances/somebody-elses/stop")
    demo.start_what_is_off(CONFIG)
    assert demo.states(CONFIG) == {"swarm-1": "RUNNING", "swarm-2": "RUNNING"}
    assert capsys.readouterr().out == "  swarm-2 is off: starting it\n"
    assert client.get(f"{ZONE}/instances/somebody-elses")["status"] == "TERMINATED"


def test_a_vm_that_does_not_start_is_told_with_the_reason(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Recorder()
    with serve(state, driver=driver) as serving:
        client = Client(serving.url)
        monkeypatch.setattr(demo, "API", serving.url)
        make_vms(client, "swarm-1")
        client.do("POST", f"{ZONE}/instances/swarm-1/stop")
        driver.failing = {"start"}
        with pytest.raises(DemoError, match="instances/swarm-1: start does not work today"):
            demo.start_what_is_off(CONFIG)


def test_a_cloud_that_is_gone_is_a_sentence(state: Path) -> None:
    with pytest.raises(DemoError, match="answers no longer"):
        demo.start_what_is_off(CONFIG)


# What a run that was cut off has left


def write_pending(state: Path, *operations: dict[str, Any]) -> None:
    file = state / "pulumi" / ".pulumi" / "stacks" / "pilot-fleet" / "lab.json"
    file.parent.mkdir(parents=True)
    latest = {"resources": [], "pending_operations": list(operations)}
    file.write_text(json.dumps({"version": 3, "checkpoint": {"latest": latest}}))


def creating(kind: str, **inputs: str) -> dict[str, Any]:
    return {"type": "creating", "resource": {"type": kind, "inputs": inputs}}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is run, and is not."""
    commands_run: list[list[str]] = []

    def run(command: list[str], *, holding: IO[str] | None = None, **environment: str) -> None:
        assert holding is not None
        assert environment["PULUMI_BACKEND_URL"] == f"file://{demo.backend()}"
        commands_run.append(command[2:])

    monkeypatch.setattr(demo, "run", run)
    return commands_run


def test_what_was_half_made_is_taken_away_and_forgotten(
    served: Serving, state: Path, tmp_path: Path, ran: list[list[str]]
) -> None:
    write_pending(
        state,
        creating("gcp:compute/instance:Instance", name="swarm-2", zone=CONFIG.zone),
        creating("gcp:compute/instance:Instance", name="swarm-3", zone=CONFIG.zone),
        creating("gcp:compute/address:Address", name="swarm-3", region="us-central1"),
        creating("gcp:compute/routerNat:RouterNat", name="nat", region="us-central1"),
        creating("gcp:compute/projectMetadataItem:ProjectMetadataItem", key="startup-script"),
        creating("gcp:storage/bucket:Bucket", name="a-bucket"),
        {**creating("gcp:compute/instance:Instance", name="swarm-1", zone=CONFIG.zone),
         "type": "deleting"},
    )  # fmt: skip
    with (tmp_path / "lock").open("w") as lock:
        demo.carry_out(lock)
    assert demo.states(CONFIG) == {"swarm-1": "RUNNING"}
    assert [words[:4] for words in ran] == [["exec", "--", "pulumi", "refresh"], ["up", "lab"]]
    assert "--clear-pending-creates" in ran[0]


def test_what_is_still_being_made_is_awaited_before_it_is_taken_away(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Gated()
    with serve(state, driver=driver) as serving:
        client = Client(serving.url)
        monkeypatch.setattr(demo, "API", serving.url)
        make_vms(client)
        client.call("POST", f"{ZONE}/instances", vm("swarm-1"))
        assert driver.started.wait(PATIENCE)
        fetch = demo.fetch

        def waited(url: str, *words: Any, **more: Any) -> dict[str, Any]:
            if url.endswith("/wait"):
                driver.go.set()
            return fetch(url, *words, **more)

        monkeypatch.setattr(demo, "fetch", waited)
        try:
            demo.take_away(
                creating("gcp:compute/instance:Instance", name="swarm-1", zone=CONFIG.zone)
            )
        finally:
            driver.go.set()
        assert demo.states(CONFIG) == {}


@pytest.mark.parametrize("there", [True, False])
def test_after_an_orderly_end_nothing_is_looked_for(
    state: Path, tmp_path: Path, ran: list[list[str]], there: bool
) -> None:
    if there:
        write_pending(state)
    with (tmp_path / "lock").open("w") as lock:
        demo.carry_out(lock)
    assert ran == [["up", "lab"]]


def test_names_of_kinds_in_paths() -> None:
    kinds = ("instance", "address", "resourcePolicy", "network", "disk")
    plurals = ["instances", "addresses", "resourcePolicies", "networks", "disks"]
    assert [demo._plural(kind) for kind in kinds] == plurals


def test_an_up_that_fails_says_what_ends_a_conflict(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> None:
        raise DemoError("this failed")

    monkeypatch.setattr(demo, "run", run)
    with (
        (tmp_path / "lock").open("w") as lock,
        pytest.raises(DemoError, match=r"this failed\n.*409.*`make lab-down`, then `make lab`"),
    ):
        demo.carry_out(lock)


def test_a_state_that_is_none_is_a_sentence(state: Path) -> None:
    write_pending(state)
    file = next((state / "pulumi").rglob("lab.json"))
    file.write_text("{")
    with pytest.raises(DemoError, match="is no state of a stack"):
        demo.pending()


def test_the_lab_keeps_its_state_where_the_toolchain_looks_for_it() -> None:
    assert demo.STATE / "pulumi" == commands.LAB_BACKEND
    assert demo.STACK == commands.LAB


# Being interrupted

HARNESS = """\
import fcntl, sys
from demo import __main__ as demo
lock = open(sys.argv[1], "a+")
fcntl.flock(lock, fcntl.LOCK_EX)
demo.up = lambda: demo.run([sys.executable, *sys.argv[2:]], holding=lock)
sys.exit(demo.main(["up"]))
"""

# As Pulumi: a plugin in a process group of its own, which a signal to the group does not reach,
# and an end that takes its time: as long as nothing is written into the pipe.
ENGINE = """\
import os, signal, subprocess, sys
def say(line):  # in one piece: others write, too
    os.write(1, f"{line}\\n".encode())
program = "import os, signal; os.write(1, b'plugin' + bytes([10])); signal.pause()"
plugin = subprocess.Popen(
    [sys.executable, "-c", program],
    process_group=0, close_fds=False,
)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
say(f"engine {os.getpid()} {plugin.pid}")
while signal.sigwait({signal.SIGINT}):
    say("asked")
    if sys.argv[1] != "stubborn":
        break
with open(sys.argv[2], "rb", buffering=0) as pipe:
    pipe.read(1)
if sys.argv[1] == "tidy":
    plugin.kill()
say("ended orderly")
sys.exit(1)
"""


class Harness:
    """demo's `run` in a process of its own, with a program below it."""

    def __init__(self, folder: Path, how: str) -> None:
        engine = folder / "engine.py"
        engine.write_text(ENGINE)
        self.lock = folder / "demo.lock"
        os.mkfifo(folder / "pipe")
        self.pipe = os.open(folder / "pipe", os.O_RDWR)
        self.process = subprocess.Popen(
            [sys.executable, "-c", HARNESS, str(self.lock), str(engine), how, str(folder / "pipe")],
            cwd=demo.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.said = ""
        words = self.until("engine")[-1].split()
        self.until("plugin")
        # Taken now, so that what is waited for is these processes and nobody else.
        self.others = [os.pidfd_open(int(pid)) for pid in words[1:]]

    def until(self, word: str) -> list[str]:
        """Read on until a line has `word`; return the lines that have it."""
        assert self.process.stdout is not None
        while not (found := [line for line in self.said.split("\n")[:-1] if word in line]):
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            more = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert more, self.said
            self.said += more.decode()
        return found

    def let_end(self) -> None:
        """Let what was asked to end do so."""
        os.write(self.pipe, b".")

    def ended(self) -> int:
        """Wait for the end of all; return the exit code."""
        code = self.process.wait(PATIENCE)
        for each in self.others:
            assert select.select([each], [], [], PATIENCE)[0], "outlives it"
        assert self.process.stdout is not None
        self.said += self.process.stdout.read().decode()
        assert "Traceback" not in self.said
        return code

    def close(self) -> None:
        for each in self.others:
            if not select.select([each], [], [], 0)[0]:
                signal.pidfd_send_signal(each, signal.SIGKILL)
            os.close(each)
        os.close(self.pipe)
        self.process.kill()
        self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def harness(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Harness]:
    started = Harness(tmp_path, request.param)
    yield started
    started.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("harness", ["tidy", "careless"], indirect=True)
def test_what_is_interrupted_ends_by_itself_and_with_its_plugins(
    harness: Harness, number: signal.Signals
) -> None:
    harness.process.send_signal(number)
    harness.until("asked")
    harness.until("Ctrl-C again cuts it off")
    assert harness.process.poll() is None
    harness.let_end()
    assert harness.ended() == 130
    assert "ended orderly" in harness.said
    assert harness.said.count("asked") == 1
    assert "`make lab` goes on, `make lab-down` ends it" in harness.said


@pytest.mark.parametrize("harness", ["stubborn"], indirect=True)
def test_a_second_time_cuts_it_off(harness: Harness) -> None:
    harness.process.send_signal(signal.SIGINT)
    harness.until("asked")
    harness.until("Ctrl-C again cuts it off")
    harness.process.send_signal(signal.SIGINT)
    assert harness.ended() == 130
    assert "ended orderly" not in harness.said


@pytest.mark.parametrize("harness", ["tidy"], indirect=True)
def test_who_is_killed_leaves_the_lock_to_what_runs_on(harness: Harness) -> None:
    harness.process.kill()
    harness.process.wait(PATIENCE)
    with harness.lock.open("a+") as lock:
        assert not demo.take(lock)
        signal.pidfd_send_signal(harness.others[0], signal.SIGINT)
        harness.let_end()
        harness.ended()
        assert demo.take(lock)


@pytest.mark.parametrize("harness", ["tidy"], indirect=True)
def test_plugins_that_outlive_a_pulumi_that_was_killed_too_are_ended(harness: Harness) -> None:
    engine, plugin = harness.others
    harness.process.kill()
    harness.process.wait(PATIENCE)
    signal.pidfd_send_signal(engine, signal.SIGKILL)
    assert select.select([engine], [], [], PATIENCE)[0]
    with harness.lock.open("a+") as lock:
        assert not select.select([plugin], [], [], 0)[0]
        # Whoever reaps it does so some time after its end.
        assert processes.until(lambda: demo.take(lock), PATIENCE)
    harness.ended()
