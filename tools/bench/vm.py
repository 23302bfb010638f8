"""One swarm VM in a container, and a registry beside it as a process of this machine.

The VM is made like any other: the lab's cloud, Google's runner, the startup script, pilot-node.
Only the registry is no VM but a process in the lab's network namespace: it can be started anew with
another delay, and the VM's figures are the VM's alone.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from components import startup
from components.spec import Binary, metadata, swarm_spec
from components.stack_file import parse
from lab.cloud import cloud
from lab.machines.container import lab_name
from lab.machines.host import ensure_packages, no_containers
from lab.machines.image import default_cache, ensure_image
from lab.machines.namespace import Namespace
from lab.machines.places import free_port
from lab.machines.processes import end, find, first_in
from tests.lab.cloud.client import Client
from tests.lab.machines.conftest import leftovers

ROOT = Path(__file__).resolve().parents[2]
DAEMON = ROOT / "artifacts" / "1.18.0" / "pilot-daemon"
NAME = "swarm-1"
BASE_PORT = 10000
WINDOW = 15
# The gateway of the lab's default subnet, on the lab's bridge.
_GATEWAY = "10.10.0.1"
_CLOUD = "projects/lab-project"
_ZONE = f"{_CLOUD}/zones/us-central1-a"
_REGION = f"{_CLOUD}/regions/us-central1"
_INSTANCE = f"/compute/v1/{_ZONE}/instances/{NAME}"
# Connections of an agent to the registry, which is one process here (docs/FACTS.md).
_CONNECTIONS_PER_AGENT = 4
_ACCOUNT = "fleet-vms@lab-project.iam.gserviceaccount.com"
_PATIENCE_S = 120.0


class BenchError(Exception):
    """The measurement is not possible. The text says why and what to do."""


def check(agents: int) -> None:
    """Raise BenchError where this machine cannot carry `agents` and their registry."""
    if why := no_containers():
        raise BenchError(f"a VM at native speed is a container: {why}")
    if not DAEMON.is_file():
        raise BenchError(f"{DAEMON.relative_to(ROOT)} is missing: `make artifacts` fetches it")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = agents * _CONNECTIONS_PER_AGENT + 200
    if needed > hard:
        raise BenchError(
            f"{agents} agents hold {needed} connections to one registry, and a process here may "
            f"open {hard} files: at most {(hard - 200) // _CONNECTIONS_PER_AGENT} agents"
        )
    # Children may open as many.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class BenchVm:
    """A booted swarm VM. Made by `booted`."""

    def __init__(self, state: Path, ending: ExitStack, startup_dir: Path | None) -> None:
        self.state = state / "lab"
        self._registry_folder = state / "registry"
        self._ending = ending
        self._script = startup.render(BASE_PORT, startup_dir)
        self._daemon = Binary(
            name="pilot-daemon",
            version="1.18.0",
            path=str(DAEMON),
            sha256=hashlib.sha256(DAEMON.read_bytes()).hexdigest(),
            is_built=True,
        )
        # The container gets the port before anything listens on it.
        self._port = free_port()
        lab = cloud.run(self.state, driver="container", port=self._port)
        self._serving, _ = ending.enter_context(lab)
        # The container ends with this process, whatever happens.
        ending.callback(self._driver.shutdown)
        ending.callback(self.stop_registry)
        self._api = Client(self._serving.url, timeout=180)
        self._namespace = Namespace(lab_name(self.state))
        self._registry: subprocess.Popen[bytes] | None = None
        self._registries = 0

    @property
    def _driver(self) -> Any:
        return self._serving.lab.driver

    def boot(self) -> None:
        """Make network, bucket, binary, script and VM; wait until the script is done."""
        do = self._api.do
        do(
            "POST",
            f"/compute/v1/{_CLOUD}/global/networks",
            {"name": "fleet", "autoCreateSubnetworks": False},
        )
        subnet = {"name": "fleet", "ipCidrRange": "10.10.0.0/20"}
        subnet["network"] = f"{_CLOUD}/global/networks/fleet"
        do("POST", f"/compute/v1/{_REGION}/subnetworks", subnet)
        bucket, spec = self._spec(1)
        do("POST", "/storage/v1/b?project=lab-project", {"name": bucket})
        reader = {"role": "roles/storage.objectViewer", "members": [f"serviceAccount:{_ACCOUNT}"]}
        do("PUT", f"/storage/v1/b/{bucket}/iam", {"bindings": [reader]})
        self._api.upload(bucket, str(self._daemon.object), DAEMON.read_bytes())
        project = self._api.get(f"/compute/v1/{_CLOUD}")["commonInstanceMetadata"]
        script = {
            "fingerprint": project["fingerprint"],
            "items": _items({"startup-script": self._script.text}),
        }
        do("POST", f"/compute/v1/{_CLOUD}/setCommonInstanceMetadata", script)
        image = "projects/debian-cloud/global/images/family/debian-12"
        instance = {
            "name": NAME,
            # More memory than its agents ever take; the processors are this machine's.
            "machineType": f"{_ZONE}/machineTypes/n2-custom-4-22528".removeprefix(f"{_CLOUD}/"),
            "disks": [
                {"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": image}},
                {
                    "autoDelete": True,
                    "deviceName": "pilot-state",
                    "initializeParams": {"diskName": f"{NAME}-state", "diskSizeGb": "10"},
                },
            ],
            "networkInterfaces": [{"subnetwork": f"{_REGION}/subnetworks/fleet"}],
            "serviceAccounts": [{"email": _ACCOUNT}],
            "metadata": {"items": _items(metadata(spec))},
        }
        do("POST", _INSTANCE.removesuffix(f"/{NAME}"), instance)
        self.until(lambda: "startup-script exit status" in self.console(), "the startup script")
        if "pilot: done: swarm" not in self.console():
            raise BenchError("the startup script failed:\n" + self._last_lines())

    def _spec(self, agents: int) -> tuple[str, dict[str, Any]]:
        """The bucket, and the program's spec for `agents` agents."""
        text = (ROOT / "Pulumi.lab.yaml").read_text(encoding="utf-8")
        config = parse(text.replace(":8480", f":{self._port}"), "Pulumi.lab.yaml")
        vm = next(each for each in config.swarm if each.name == NAME)
        spec = swarm_spec(config, vm, daemon=self._daemon, script_sha256=self._script.sha256)
        spec |= {"agents": agents, "basePort": BASE_PORT, "window": WINDOW}
        spec |= {"registry": f"{_GATEWAY}:9000", "beacon": f"{_GATEWAY}:9001"}
        return config.bucket, spec

    def want(self, agents: int) -> None:
        """Declare the number of agents, as `pulumi up` would. pilot-node must not run."""
        items = _items(metadata(self._spec(agents)[1]))
        fingerprint = self._api.get(_INSTANCE)["metadata"]["fingerprint"]
        body = {"fingerprint": fingerprint, "items": items}
        self._api.do("POST", f"{_INSTANCE}/setMetadata", body)
        # As the startup script does at boot: pilot-node begins with this spec.
        self.run("pilot-node spec swarm units")

    def empty(self) -> None:
        """End pilot-node and all agents; remove their homes (identities) and the VM's orders."""
        # In groups: thousands of seccomp filters that end at once can hang a kernel.
        self.run(
            "systemctl stop pilot-node.service;"
            " systemctl list-units --plain --no-legend 'pilot-agent*@*' | cut -d ' ' -f 1"
            " | xargs -r -n 50 systemctl stop || true"
        )
        self.until(lambda: not self.processes("pilot-daemon"), "the end of all agents")
        self.run(
            "systemctl reset-failed; find /run/pilot/log -mindepth 1 -delete;"
            " rm -rf /var/lib/pilot/agents/* /run/pilot/orders.json"
        )

    # The machine

    def run(self, command: str) -> str:
        """Run a command as root on the VM; its output. BenchError where it fails."""
        done = subprocess.run(
            self.line(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[-1000:]
            raise BenchError(f"on the VM, `{command}` ended with {done.returncode}: {said}")
        return done.stdout.strip()

    def line(self, command: str) -> list[str]:
        """The command line that runs `command` as root on the VM."""
        answer = self._api.do("POST", f"/lab/{_ZONE}/instances/{NAME}/forward", {"port": 22})
        options = ["-q", "-i", str(self._driver.ssh_key()), "-o", "StrictHostKeyChecking=no"]
        options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
        options += ["-o", "ConnectionAttempts=20", "-p", str(answer["port"])]
        return ["ssh", *options, "root@127.0.0.1", command]

    def console(self) -> str:
        return str(self._api.get(f"{_INSTANCE}/serialPort")["contents"])

    def _last_lines(self) -> str:
        return "\n".join(self.console().splitlines()[-15:])

    def first(self) -> int:
        """This machine's ID of the VM's PID 1."""
        (folder,) = (self.state / "machines").iterdir()
        launcher = find(folder / "pid", str(folder))
        first = None if launcher is None else first_in(launcher)
        if first is None:
            raise BenchError("the container is gone:\n" + self._last_lines())
        return first

    def processes(self, comm: str) -> list[int]:
        """This machine's IDs of the VM's processes with the name `comm` (15 letters)."""
        return [pid for pid in self.all_processes() if _read(pid, "comm").strip() == comm]

    def node(self) -> int:
        """This machine's ID of pilot-node, which was started."""
        found: list[int] = []

        def runs() -> bool:
            # Between fork and exec it still has PID 1's name.
            found[:] = [
                pid
                for pid in self.all_processes()
                if "/usr/local/sbin/pilot-node\0run" in _read(pid, "cmdline")
            ]
            return bool(found)

        self.until(runs, "pilot-node runs")
        return found[0]

    def all_processes(self) -> list[int]:
        mine = _namespace_of(self.first())
        return [pid for pid in map(int, _numbers()) if _namespace_of(pid) == mine]

    # The registry

    def start_registry(self, *, delay: float) -> int:
        """Start a registry that knows nobody and answers a registration `delay` seconds late; its
        process ID. The VM's subnet is exempt from its limit of new keys."""
        self.stop_registry()
        # The whitelist lies beside the store, as on the rendezvous.
        self._registries += 1
        folder = self._registry_folder / str(self._registries)
        folder.mkdir(parents=True)
        listed = json.dumps([{"cidr": "10.10.0.0/20", "rate": 100_000}])
        (folder / "rate-limit-whitelist.json").write_text(listed)
        command = ["ip", "netns", "exec", self._namespace.name, sys.executable, "-m", "lab.standin"]
        command += ["-http", "127.0.0.1:3000", "-store", str(folder / "registry.json")]
        with (folder / "log").open("wb") as log:
            self._registry = subprocess.Popen(
                [*command, "-delay", str(delay)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.until(self._answers, f"the registry (see {folder / 'log'})")
        return self._registry.pid

    def stop_registry(self) -> None:
        if self._registry is not None:
            end(self._registry)
            self._registry = None
            shutil.rmtree(self._registry_folder, ignore_errors=True)

    def online(self) -> int:
        """Agents that are registered."""
        return int(self._ask("/healthz")["nodes_online"])

    def most_open(self) -> int:
        """The most registrations that were open at once since the registry started."""
        return int(self._ask("/knobs")["registrations"]["peak"])

    def _answers(self) -> bool:
        try:
            return "nodes_online" in self._ask("/healthz")
        except OSError:
            return False

    def _registry_said(self) -> str:
        log = self._registry_folder / str(self._registries) / "log"
        return log.read_text(errors="replace")[-1000:] if log.exists() else "none"

    def _ask(self, path: str) -> dict[str, Any]:
        if self._registry is None or self._registry.poll() is not None:
            raise BenchError(f"the registry is gone; its log ends: {self._registry_said()}")
        connection = http.client.HTTPConnection("127.0.0.1", 3000, timeout=10)
        connection.sock = self._namespace.inside(_connected)
        try:
            connection.request("GET", path)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert isinstance(answer, dict)
        return answer

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; BenchError where it does not come true in time."""
        end = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                raise BenchError(f"not within {_PATIENCE_S:.0f} s: {what}\n{self._last_lines()}")
            time.sleep(0.1)


@contextmanager
def booted(folder: Path, startup_dir: Path | None = None) -> Iterator[BenchVm]:
    """A swarm VM with its files below `folder`. BenchError where something is left at the end.

    `startup_dir` stands in for this checkout's startup/.
    """
    ensure_packages("container")
    ensure_image(default_cache())
    with ExitStack() as ending:
        vm = BenchVm(folder, ending, startup_dir)
        vm.boot()
        try:
            yield vm
        finally:
            with suppress(BenchError):
                vm.empty()
    if left := leftovers(folder / "lab"):
        raise BenchError(f"something is left behind: {', '.join(sorted(left))}")


def _connected() -> socket.socket:
    return socket.create_connection(("127.0.0.1", 3000), timeout=10)


def _items(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _numbers() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (fast)


def _read(pid: int, name: str) -> str:
    """A file of a process; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _namespace_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 (thousands of them)
    except OSError:
        return ""
