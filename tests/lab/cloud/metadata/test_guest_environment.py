"""Google's own script runner against the metadata server, in a network namespace of its own.

It shows what docs/FACTS.md says of scripts: an instance's script hides the project's, unseen.
Needs root, and the binary: installed, or from Debian's package of it.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.metadata.server import MetadataServing, serve_metadata
from lab.cloud.server import Serving
from lab.machines.processes import ending
from tests.lab.cloud.client import COMPUTE, ZONE, Client, vm

# Real programs, and their own timers: too slow for what is run at every change.
pytestmark = pytest.mark.engine

PATH = "projects/p1/zones/us-central1-a/instances/vm"
RUNNER = "google_metadata_script_runner"
SECONDS = 60.0  # after which a download or a run of the runner is broken
CLONE_NEWNET = 0x40000000  # <sched.h>


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Google's runner."""
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if found := shutil.which(RUNNER):
        return Path(found)
    if shutil.which("apt-get") is None:
        pytest.skip(f"{RUNNER} is not installed, and there is no apt-get to fetch it with")
    folder = tmp_path_factory.mktemp("guest-agent")
    folder.chmod(0o777)  # apt downloads as a user of its own
    fetch = ["apt-get", "download", "-qq", "google-guest-agent"]
    done = run(fetch, folder)
    if done.returncode:
        run(["apt-get", "update", "-qq"], folder)
        done = run(fetch, folder)
    packages = list(folder.glob("*.deb"))
    if done.returncode or not packages:
        pytest.skip(f"Debian's google-guest-agent cannot be fetched: {done.stderr.strip()}")
    subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True)
    return folder / "usr" / "bin" / RUNNER


def run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS
    )


@pytest.fixture
def namespace() -> Iterator[Path]:
    """A network namespace that has 169.254.169.254 and nothing else."""
    script = "ip link set lo up && ip addr add 169.254.169.254/32 dev lo && echo up && exec cat"
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with ending(holder):
        assert holder.stdout is not None
        said = holder.stdout.readline()
        if said != "up\n":
            pytest.skip(f"no network namespace can be made: {said.strip()}")
        yield Path(f"/proc/{holder.pid}/ns/net")


def socket_in(namespace: Path) -> socket.socket:
    """Return a socket bound to the metadata server's address in a namespace."""
    made: list[socket.socket | OSError] = []

    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with namespace.open() as file:
                if libc.setns(file.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            listener = socket.socket()
            listener.bind(("169.254.169.254", 80))
            made.append(listener)
        except OSError as error:
            made.append(error)

    # A thread of its own: only that enters the namespace.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    return made[0]


@pytest.fixture
def served(serving: Serving, network: Client, namespace: Path) -> Iterator[MetadataServing]:
    network.do("POST", f"{ZONE}/instances", vm())
    with serve_metadata(serving.lab, PATH, socket_in(namespace)) as started:
        yield started


def items(scripts: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in scripts.items()]


def script(says: str, to: Path) -> str:
    return f"#!/bin/bash\necho {says} | tee --append {to}\n"


def say(namespace: Path, runner: Path, when: str = "startup") -> str:
    done = subprocess.run(
        ["nsenter", f"--net={namespace}", runner, when],
        capture_output=True,
        text=True,
        check=True,
        timeout=SECONDS,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("own", "zonal", "common", "ran"),
    [
        ([], [], [], ""),
        ([], [], ["startup-script"], "project\n"),
        (["startup-script"], [], ["startup-script"], "instance\n"),
        (["startup-script"], ["startup-script"], ["startup-script"], "instance\n"),
        ([], ["startup-script"], ["startup-script"], "zone\n"),
        ([], ["startup-script"], [], "zone\n"),
        (["other"], [], ["startup-script"], "project\n"),
    ],
)
@pytest.mark.usefixtures("served")
def test_which_startup_script_googles_runner_runs(
    network: Client,
    namespace: Path,
    runner: Path,
    tmp_path: Path,
    own: list[str],
    zonal: list[str],
    common: list[str],
    ran: str,
) -> None:
    log = tmp_path / "log"
    log.touch()
    change(
        network,
        {key: script("instance", log) for key in own},
        {key: script("zone", log) for key in zonal},
        {key: script("project", log) for key in common},
    )
    said = say(namespace, runner)
    assert log.read_text() == ran
    assert ("No startup scripts to run" in said) == (not ran)
    if ran:
        assert f"startup-script: {ran}" in said
        assert "startup-script exit status 0" in said


def change(
    client: Client, own: dict[str, str], zonal: dict[str, str], common: dict[str, str]
) -> None:
    def fingerprint(path: str, *keys: str) -> Any:
        found = client.get(path)
        for key in keys:
            found = found[key]
        return found

    held = fingerprint(f"{ZONE}/instances/vm", "metadata", "fingerprint")
    body: dict[str, Any] = {"fingerprint": held, "items": items(own)}
    client.do("POST", f"{ZONE}/instances/vm/setMetadata", body)
    held = fingerprint(COMPUTE, "commonInstanceMetadata", "fingerprint")
    body = {"fingerprint": held, "items": items(common)}
    client.do("POST", f"{COMPUTE}/setCommonInstanceMetadata", body)
    held = fingerprint(f"{ZONE}/instanceSettings", "fingerprint")
    body = {"fingerprint": held, "metadata": {"items": zonal}}
    client.do("PATCH", f"{ZONE}/instanceSettings", body)


@pytest.mark.usefixtures("served")
def test_googles_runner_runs_shutdown_scripts(
    network: Client, namespace: Path, runner: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    change(network, {}, {}, {"shutdown-script": script("down", log)})
    assert "shutdown-script exit status 0" in say(namespace, runner, "shutdown")
    assert log.read_text() == "down\n"


def refused(namespace: Path) -> int:
    """Return how many connections were refused in a namespace (AttemptFails of its TCP)."""
    lines = (namespace.parent.parent / "net" / "snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("AttemptFails")])


def test_googles_runner_waits_for_a_metadata_server_that_is_away(
    network: Client, namespace: Path, runner: Path, served: MetadataServing, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    change(network, {}, {}, {"startup-script": script("project", log)})
    served.away()
    process = subprocess.Popen(
        ["nsenter", f"--net={namespace}", runner, "startup"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + SECONDS
    with ending(process):
        # Two and not one: it was refused, and asked again.
        while refused(namespace) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert not log.exists()
        served.back()
        said, _ = process.communicate(timeout=SECONDS)
    assert "startup-script exit status 0" in said
    assert log.read_text() == "project\n"


def test_googles_runner_of_2021_gives_up_on_a_503(
    network: Client, namespace: Path, runner: Path, served: MetadataServing, tmp_path: Path
) -> None:
    """The page of a refusal is no JSON to it: that boot goes on without a startup script."""
    log = tmp_path / "log"
    change(network, {}, {}, {"startup-script": script("project", log)})
    served.away(unavailable=True)
    process = subprocess.Popen(
        ["nsenter", f"--net={namespace}", runner, "startup"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with ending(process):
        assert process.stdout is not None
        if not any("20211116" in line for line in iter(process.stdout.readline, "")):
            pytest.skip("this is another version of the runner")
        assert "invalid character" in process.stdout.readline()
        # Now and then it hangs here, once it has taken this for Google and tries to log there.
    assert not log.exists()
