"""A fleet on booted VMs: the real program, the real engine, a lab with a driver that boots them."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from lab.cloud import cloud, links
from lab.cloud.compute.machines import machine
from lab.cloud.web import Request, Response
from lab.standin.build import build
from tests.components.fleet import ROOT
from tests.conftest import measured
from tests.engine.project import Project
from tests.lab.cloud.client import Client
from tests.lab.machines.conftest import leftovers

RENDEZVOUS = "pilot-rendezvous"
CLOUD = "lab-project"
ZONE = "us-central1-a"
DASHBOARD = 3000
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
STORE = "/var/lib/pilot/registry"  # on the rendezvous
# Of each agent: port, process id, start time.
_PROCESSES = (
    "for p in $(pgrep -x pilot-daemon); do"
    " a=$(tr '\\0' ' ' <\"/proc/$p/cmdline\" | sed -n 's/.* -listen :\\([0-9]*\\) .*/\\1/p');"
    ' s=$(cut -d \' \' -f 22 "/proc/$p/stat"); [ -z "$a" ] || [ -z "$s" ] || echo "$a $p $s";'
    " done 2>/dev/null; true"
)
Measured = dict[str, float | int | str]
# Google's runner on the console, when the script has ended.
_ENDED = re.compile(r"startup-script exit status (\d+)")


@dataclass(frozen=True, kw_only=True)
class Agent:
    """An agent as the registry knows it; `silent` in seconds."""

    node: int
    key: str
    owner: str
    online: bool
    silent: float

    @property
    def vm(self) -> str:
        return self.owner.partition("@")[2].removesuffix(".invalid")


class Fleet:
    """The VMs of one lab, for tests. `patience`: seconds for one boot."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *,
        driver: str,
        patience: float,
        # Not E2: Google does not let a maintenance end one, and a test asks for that.
        machine: str = "n2-custom-2-1024",
    ) -> None:
        self.machine = machine
        self.state = folder / "lab"
        self.patience = patience
        (folder / "fleet").mkdir()
        self.project = Project(folder=folder / "fleet", environment=environment, stack="lab")
        self._ending, self._is_over = ExitStack(), False
        # Short: the path of a Unix socket has 107 characters at most.
        self._logins = Path(tempfile.mkdtemp(prefix="logins-"))
        self._ending.callback(shutil.rmtree, self._logins)
        lab = cloud.run(self.state, driver=driver)
        self.serving, self.servers = self._ending.enter_context(lab)
        self.port = int(self.serving.url.rpartition(":")[2])
        self.api = Client(self.serving.url, timeout=180)
        self.wanted: dict[str, int] = {}
        # Its line's `zone`; the swarm's VMs are in ZONE.
        self.rendezvous_zone = ZONE
        # The checkout of the program, and what its stack file adds to the lab's.
        self.tree = ROOT
        self.settings: dict[str, Any] = {}
        self.releases: dict[str, dict[str, str]] = {}
        # The rendezvous' account, once the first stack file is written.
        self._account: str | None = None

    def take(self, tree: Path) -> None:
        """From now on the program is that of `tree`."""
        self.tree = tree
        self.project.take(tree)

    def carry_out(self, wanted: Mapping[str, int]) -> None:
        """`pulumi up` for a rendezvous and swarm VMs with so many agents; wait until all are
        online."""
        self.wanted = dict(wanted)
        binaries = self.project.folder / "artifacts"
        subprocess.run(
            [sys.executable, "tools/toolchain/toolchain.py", "artifacts"], cwd=ROOT, check=True
        )
        daemon = ROOT / "artifacts" / "1.18.0" / "pilot-daemon"
        shutil.copy(daemon, binaries / "1.18.0" / "pilot-daemon")
        (binaries / "lab").mkdir()
        build(binaries / "lab" / "pilot-rendezvous")
        self.project.write(self._stack())
        self.up()
        with said("boot and registration"):
            self.all_online()

    def update(
        self, wanted: Mapping[str, int], environment: Mapping[str, str] | None = None
    ) -> None:
        """`pulumi up` with other numbers and, for all agents, another environment; it does not wait
        for the VMs."""
        self.wanted = dict(wanted)
        self.project.write(self._stack(environment))
        self.up()

    def move(self, zone: str, *arguments: str) -> None:
        """`pulumi up` with the rendezvous in another zone; it does not wait for the VMs."""
        self._log_out(RENDEZVOUS)
        self.__dict__.pop("dashboard", None)
        self.rendezvous_zone = zone
        self.project.write(self._stack())
        self.up(*arguments)

    def up(self, *arguments: str) -> None:
        """`pulumi up` without the preview before it, which would run program and policies once
        more for half of the time; tests/engine has both."""
        with said(" ".join(["pulumi up", *arguments[:1]])):
            done = self.project.up("--skip-preview", *arguments).no_traceback()
        assert done.code == 0, done.text

    def _stack(self, environment: Mapping[str, str] | None = None) -> str:
        """The lab's own stack file, with another port and other numbers of agents."""
        text = (self.tree / "Pulumi.lab.yaml").read_text().replace(":8480", f":{self.port}")
        stack = yaml.safe_load(text)
        swarm = [
            {"name": name, "machineType": self.machine, "agents": agents}
            | ({"env": dict(environment)} if environment else {})
            | ({"release": self.releases[name]} if name in self.releases else {})
            for name, agents in self.wanted.items()
        ]
        stack["config"]["pilot-fleet:swarm"] = swarm
        known = yaml.safe_load((self.tree / "Pulumi.yaml").read_text())["config"]
        stack["config"] |= {
            f"pilot-fleet:{key}": value for key, value in self.settings.items() if key in known
        }
        # The plan asks for a GiB per 750 agents.
        memory = 1024 * math.ceil(sum(self.wanted.values()) / 750)
        rendezvous = stack["config"]["pilot-fleet:rendezvous"]
        rendezvous["machineType"] = f"e2-custom-2-{memory}"
        if self.rendezvous_zone != ZONE:
            rendezvous["zone"] = self.rendezvous_zone
        # That of the first `up`, or none: another account stops the VM.
        if self._account is None:
            self._account = rendezvous.get("serviceAccount", "")
        rendezvous.pop("serviceAccount", None)
        rendezvous |= {"serviceAccount": self._account} if self._account else {}
        return str(yaml.safe_dump(stack))

    def end(self) -> set[str]:
        """End the lab and its machines; what is left of it on this machine. It can be repeated."""
        if not self._is_over:
            self._is_over = True
            self._log_out("*")
            self.serving.lab.driver.shutdown()  # type: ignore[attr-defined]
            self._ending.close()
        return leftovers(self.state)

    # The cloud

    def path(self, vm: str) -> str:
        """A VM's path at Google, `projects/…`."""
        zone = self.rendezvous_zone if vm == RENDEZVOUS else ZONE
        return f"projects/{CLOUD}/zones/{zone}/instances/{vm}"

    def instance(self, vm: str) -> dict[str, Any]:
        found = self.api.get(f"/compute/v1/{self.path(vm)}")
        assert isinstance(found, dict)
        return found

    def act(self, vm: str, verb: str, body: Any = None) -> None:
        """`reset`, `stop`, `start`, `setMetadata`: done when this returns."""
        self.api.do("POST", f"/compute/v1/{self.path(vm)}/{verb}", body)
        if verb in ("reset", "stop"):
            self._log_out(vm)

    def cut(self, vm: str) -> None:
        """Cut a VM's power. The lab's API does not notice."""
        with self.serving.lab.store.transaction() as tx:
            found = tx.get(*links.split(self.path(vm)))
            assert found is not None
            its = machine(tx, found)
        driver: Any = self.serving.lab.driver
        driver.power_cut(its)
        self._log_out(vm)

    def metadata(self, vm: str) -> dict[str, str]:
        return {each["key"]: each["value"] for each in self.instance(vm)["metadata"]["items"]}

    def set_metadata(self, vm: str, items: Mapping[str, str]) -> None:
        fingerprint = self.instance(vm)["metadata"]["fingerprint"]
        self.act(vm, "setMetadata", {"fingerprint": fingerprint, "items": _items(items)})

    def declared(self, vm: str) -> dict[str, Any]:
        """The spec of a VM."""
        found = json.loads(self.metadata(vm)["pilot-spec"])
        assert isinstance(found, dict)
        return found

    def spec(self, vm: str, **changes: Any) -> str:
        """The spec of a VM with changes, as the metadata's text."""
        return json.dumps(self.declared(vm) | changes)

    @contextmanager
    def beside(
        self,
        model: str,
        name: str,
        items: Mapping[str, str],
        machine: str = "e2-custom-2-1024",
    ) -> Iterator[None]:
        """A VM that Pulumi knows nothing of, beside `model`, with a blank state disk of its own."""
        like = self.instance(model)
        image = "projects/debian-cloud/global/images/family/debian-12"
        state = {"diskName": f"{name}-state", "diskSizeGb": "10"}
        body = {
            "name": name,
            "machineType": f"zones/{ZONE}/machineTypes/{machine}",
            "disks": [
                {"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": image}},
                {"autoDelete": True, "deviceName": "pilot-state", "initializeParams": state},
            ],
            "networkInterfaces": [{"subnetwork": like["networkInterfaces"][0]["subnetwork"]}],
            "serviceAccounts": like["serviceAccounts"],
            "metadata": {"items": _items(items)},
        }
        path = self.path(name)
        self.api.do("POST", f"/compute/v1/{path.removesuffix(f'/{name}')}", body)
        try:
            yield
        finally:
            self.api.do("DELETE", f"/compute/v1/{path}")

    # The machines

    def console(self, vm: str) -> str:
        text = self.api.get(f"/compute/v1/{self.path(vm)}/serialPort")["contents"]
        assert isinstance(text, str)
        return text

    def ended(self, vm: str) -> list[int]:
        """The exit statuses of the startup script, one for each run that Google's runner made."""
        return [int(status) for status in _ENDED.findall(self.console(vm))]

    def run(self, vm: str, command: str) -> str:
        """Run a command as root over the VM's shared login; it may take a while until there is an
        sshd."""
        done = self.attempt(vm, command)
        assert done.returncode == 0, (
            f"{vm}: {command}: {done.returncode}, {done.stdout}{done.stderr}"
        )
        return done.stdout.strip()

    def ssh(self, vm: str, command: str) -> list[str]:
        """The command line of a login session of its own, as root on a VM."""
        key = self.serving.lab.driver.ssh_key()  # type: ignore[attr-defined]
        options = ["-q", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"]
        options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10"]
        # A VM that lost its power says nothing more.
        options += ["-o", "ServerAliveInterval=20", "-o", "ServerAliveCountMax=6"]
        return ["ssh", *options, "-p", str(self.forward(vm, 22)), "root@127.0.0.1", command]

    def once(self, vm: str, command: str) -> subprocess.CompletedProcess[str]:
        """One login of its own, which works or does not."""
        return self._done(self.ssh(vm, command))

    def attempt(self, vm: str, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command over the VM's shared login, which is made where there is none.

        A login takes an emulated processor some ten seconds, a command over one that is there less
        than one.
        """
        end = time.monotonic() + self.patience
        while True:
            line = self.ssh(vm, command)
            line[1:1] = [f"-oControlPath={self._logins}/{vm}-%p", "-oControlMaster=auto"]
            line.insert(1, "-oControlPersist=yes")
            done = self._done(line)
            # 255 is ssh's own: not connected.
            if done.returncode != 255 or time.monotonic() > end:
                return done
            time.sleep(0.5)

    def _done(self, line: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, capture_output=True, text=True, timeout=self.patience, check=False
        )

    def _log_out(self, vm: str) -> None:
        """End the shared logins to `vm` ("*": to all), which a VM without power does not end."""
        for path in self._logins.glob(f"{vm}-[0-9]*"):
            line = ["ssh", "-q", f"-oControlPath={path}", "-O", "exit", "root@127.0.0.1"]
            subprocess.run(line, check=False, capture_output=True)

    def forward(self, vm: str, port: int) -> int:
        return int(self.api.do("POST", f"/lab/{self.path(vm)}/forward", {"port": port})["port"])

    def boot(self, vm: str) -> str:
        """The kernel's ID of a VM's boot."""
        return self.run(vm, BOOT_ID)

    def running(self, vm: str) -> int:
        """Number of agents that run on a VM, by its processes."""
        return int(self.run(vm, "pgrep -cx pilot-daemon || true"))

    def processes(self, vm: str) -> dict[int, tuple[int, int]]:
        """Port -> (process id, start time in ticks since boot) of the agents of a VM.

        AssertionError where two have one port.
        """
        found: dict[int, tuple[int, int]] = {}
        for line in self.run(vm, _PROCESSES).splitlines():
            port, pid, started = map(int, line.split())
            assert port not in found, f"{vm}: two processes have port {port}: {pid}, {found[port]}"
            found[port] = (pid, started)
        return found

    # Status and orders

    def status(self, vm: str) -> dict[str, Any] | None:
        """The last status of the VM's present boot, from its guest attribute; None: none yet."""
        answer = self.api.call(
            "GET", f"/compute/v1/{self.path(vm)}/getGuestAttributes?queryPath=pilot/status"
        )
        if answer.status == 404:
            return None
        assert answer.status == 200, answer
        found = json.loads(answer.json["queryValue"]["items"][0]["value"])
        assert isinstance(found, dict)
        return found

    def until_status(
        self, vm: str, condition: Callable[[dict[str, Any]], bool], what: str
    ) -> dict[str, Any]:
        """Wait for a status of the VM's present boot that fulfils `condition`.

        It may be older than this call: one that says nothing new is a minute old.
        """
        boot = self.boot(vm)
        seen: dict[str, Any] = {}

        def fulfilled() -> bool:
            seen.clear()
            seen.update(self.status(vm) or {})
            return seen.get("boot") == boot and condition(seen)

        self.until(fulfilled, f"{vm}: {what}", lambda: f"its status: {json.dumps(seen)}")
        return seen

    def whole(self, vm: str) -> None:
        """Wait until a VM's status says that nothing is left to do, and all its agents run."""

        def done(told: dict[str, Any]) -> bool:
            agents = told["agents"]
            return bool(told["phase"] == "whole" and agents["running"] == agents["wanted"])

        self.until_status(vm, done, "whole")
        self.until(
            lambda: self.running(vm) == self.wanted[vm],
            f"{self.wanted[vm]} agents run on {vm}",
            lambda: f"{self.running(vm)} do",
        )

    @property
    def bucket(self) -> str:
        return str(self.declared(RENDEZVOUS)["bucket"])

    def order(self, vm: str, **fields: Any) -> None:
        """Give a VM an order, as an operator does; without fields the order is removed."""
        place = f"orders/{vm}.json"
        if fields:
            text = json.dumps({"schema": 1, "by": "the tests", **fields})
            assert self.api.upload(self.bucket, place, text.encode()).status == 200
        else:
            answer = self.api.call("DELETE", f"/storage/v1/b/{self.bucket}/o/{quote(place, '')}")
            assert answer.status in (204, 404), answer

    def knobs(self, **turned: Any) -> dict[str, Any]:
        """Turn the stand-in's knobs; what they are and how many registrations are open.

        `reset_peak=True` counts the most that are open anew.
        """
        address = f"http://127.0.0.1:{DASHBOARD}/knobs"
        send = f"--data {shlex.quote(json.dumps(turned))}" if turned else ""
        answer = json.loads(self.run(RENDEZVOUS, f"curl -sS --fail-with-body {send} {address}"))
        assert isinstance(answer, dict)
        return answer

    def release(self, version: str, binary: bytes, what: str = "daemon") -> dict[str, Any]:
        """Upload another binary (pilot-daemon by default); the spec's `release` that names it."""
        sha256 = hashlib.sha256(binary).hexdigest()
        path = f"releases/{sha256}/pilot-{what}"
        assert self.api.upload(self.bucket, path, binary).status == 200
        return {"version": version, what: {"object": path, "sha256": sha256}}

    def change_spec(self, vm: str, **changes: Any) -> None:
        """Change a running VM's spec, as `pulumi up` does."""
        items = self.metadata(vm)
        self.set_metadata(vm, items | {"pilot-spec": self.spec(vm, **changes)})

    def all_metadata(self) -> dict[str, dict[str, str]]:
        """The last `pulumi up`'s metadata: VM -> metadata, "" -> the project's."""
        common = self.api.get(f"/compute/v1/projects/{CLOUD}")["commonInstanceMetadata"]
        project = {each["key"]: each["value"] for each in common.get("items", [])}
        return {"": project} | {vm: self.metadata(vm) for vm in (*self.wanted, RENDEZVOUS)}

    def write_metadata(self, kept: Mapping[str, Mapping[str, str]]) -> None:
        """Write the metadata of an earlier `pulumi up` for all VMs, in a second."""
        project = f"/compute/v1/projects/{CLOUD}"
        fingerprint = self.api.get(project)["commonInstanceMetadata"]["fingerprint"]
        body = {"fingerprint": fingerprint, "items": _items(kept[""])}
        self.api.do("POST", f"{project}/setCommonInstanceMetadata", body)
        for vm in (*self.wanted, RENDEZVOUS):
            self.set_metadata(vm, kept[vm])

    # The registry

    @cached_property
    def dashboard(self) -> Client:
        return Client(f"http://127.0.0.1:{self.forward(RENDEZVOUS, DASHBOARD)}", timeout=5)

    def stats(self) -> tuple[int, int] | None:
        """(registered, online) nodes; None while the registry does not answer."""
        try:
            answer = self.dashboard.call("GET", "/api/stats")
        except OSError:
            # It may be forwarded from elsewhere now: its port was free while the VM was off.
            self.__dict__.pop("dashboard", None)
            return None
        if answer.status != 200 or answer.json is None:
            return None
        return int(answer.json["total_nodes"]), int(answer.json["active_nodes"])

    def agents(self) -> dict[str, Agent]:
        """The registered agents by owner; none while the registry does not answer.

        The stand-in tells it on its VM's loopback only.
        """
        answer = self.attempt(RENDEZVOUS, f"curl -sS http://127.0.0.1:{DASHBOARD}/agents")
        listed = json.loads(answer.stdout) if answer.returncode == 0 else []
        found = {
            each["owner"]: Agent(
                node=each["node_id"],
                key=each["public_key"],
                owner=each["owner"],
                online=each["online"],
                silent=each["silent_secs"],
            )
            for each in listed
        }
        assert len(found) == len(listed), f"an owner is registered twice: {listed}"
        return found

    def identities(self) -> dict[str, tuple[int, str]]:
        return {owner: (agent.node, agent.key) for owner, agent in self.agents().items()}

    def all_online(self) -> None:
        """Wait until as many nodes are online as agents are wanted."""
        total = sum(self.wanted.values())
        self.until(
            lambda: (self.stats() or (0, 0))[1] == total,
            f"{total} agents online",
            lambda: f"registered and online: {self.stats()}",
        )

    def heard_since(self, moment: float, vm: str) -> None:
        """Wait until the registry has heard each of a VM's agents after `moment`."""

        def heard() -> bool:
            since = time.monotonic() - moment
            agents = [agent for agent in self.agents().values() if agent.vm == vm]
            fresh = [agent for agent in agents if agent.online and agent.silent < since]
            return len(fresh) == self.wanted[vm]

        self.until(
            heard,
            f"{self.wanted[vm]} agents of {vm} heard",
            lambda: f"the registry: {self.agents()}",
        )

    # Waiting

    def until(
        self,
        condition: Callable[[], bool],
        what: str,
        otherwise: Callable[[], str] = str,
    ) -> None:
        """Wait for a condition; AssertionError with the consoles' last lines where it does not
        come true in time."""
        end = time.monotonic() + self.patience
        while not condition():
            assert time.monotonic() < end, (
                f"not within {self.patience:.0f} s: {what}. {otherwise()}\n{self.last_lines()}"
            )
            time.sleep(0.2)

    def until_there(self, vm: str, condition: str, what: str) -> None:
        """Wait for a condition of a VM's shell, in one command: on an emulated processor each
        command costs as much as the thing it looks at."""
        wait = f"until {condition}; do sleep 0.5; done"
        # The VM gives up first, and says so.
        line = f"timeout {max(1, int(self.patience) - 15)} sh -c {shlex.quote(wait)}"
        done = self.attempt(vm, line)
        assert done.returncode == 0, (
            f"{vm}: not within {self.patience:.0f} s: {what}. {done.stderr}\n{self.last_lines()}"
        )

    def until_console(self, vm: str, text: str, count: int = 1) -> None:
        self.until(lambda: self.console(vm).count(text) >= count, f"{vm}: {text!r} x {count}")

    def until_ended(self, vm: str, count: int = 1) -> int:
        """Wait until the startup script has ended so many times; its last exit status."""
        self.until(lambda: len(self.ended(vm)) >= count, f"{vm}: {count} runs of the script")
        return self.ended(vm)[-1]

    def last_lines(self) -> str:
        machines = sorted((self.state / "machines").glob("*/console.log"))
        texts = {file.parent.name: file.read_text(errors="replace") for file in machines}
        return "\n".join(
            f"== {name}\n" + "\n".join(text.splitlines()[-25:]) for name, text in texts.items()
        )

    @contextmanager
    def bucket_away(self) -> Iterator[list[str]]:
        """Downloads from the bucket are answered with 503; the list fills with their paths.

        Only downloads: the engine's provider can still read its own objects.
        """
        refused: list[str] = []
        answer = self.serving.lab.answer

        def away(request: Request) -> Response:
            if request.path.startswith("/storage/") and request.query.get("alt") == "media":
                refused.append(request.path)
                return Response(body={"error": {"code": 503, "message": "away"}}, status=503)
            return answer(request)

        self.serving.lab.answer = away  # type: ignore[method-assign]
        try:
            yield refused
        finally:
            self.serving.lab.answer = answer  # type: ignore[method-assign]


@contextmanager
def said(what: str) -> Iterator[None]:
    """Print how long something took."""
    start = time.monotonic()
    yield
    measured(f"{what}: {time.monotonic() - start:.1f} s")


def _items(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]
