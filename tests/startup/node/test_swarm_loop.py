"""The service of a swarm VM as a whole: metadata and bucket on loopback, a folder for a VM."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from startup.node.desired.orders import recall as recall_orders
from startup.node.follower import Follower, recall_spec
from startup.node.machine import agent_units, files
from startup.node.machine.agent_units import OWN, SOURCE
from startup.node.machine.paths import Paths
from startup.node.machine.polling import Wake
from startup.node.machine.retry import FinalError
from startup.node.pressure.sampler import Sample
from startup.node.report.status import Published, document
from startup.node.rollout import roll_state
from startup.node.setup import release, units
from startup.node.swarm.decide import Goal
from startup.node.swarm.supervisor import Keeper
from startup.node.swarm_loop import SwarmLoop
from tests.startup import specs
from tests.startup.conftest import PROC
from tests.startup.google import Google
from tests.startup.node.swarm.test_supervisor import Pid1

SECONDS = 20.0
ROLL = {"auto": True, "batch": 3, "watchSeconds": 0}


class Service:
    """A VM whose service can be killed and started again. Its agents are folders."""

    def __init__(self, root: Path, google: Google, monkeypatch: pytest.MonkeyPatch) -> None:
        self.google = google
        self.paths = Paths(root=root, metadata_host=google.host)
        for name, content in PROC.items():
            path = root / "proc" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="ascii")
        (root / "proc/uptime").write_text("1000.0 1.0\n", encoding="ascii")
        for path in (self.paths.logs, self.paths.state, self.paths.units):
            path.mkdir(parents=True)
        self.mount()
        self.behave: Callable[[int, str], str] = lambda port, sha256: "ready"
        self.pid1 = Pid1(self.paths, self._behave)
        self.said: list[str] = []
        self.systemctl: list[tuple[str, ...]] = []
        self.scripts = 0
        self.script_at_work = False
        self.private: Callable[[str], float] = lambda sha256: 1e6
        monkeypatch.setattr(
            "startup.node.setup.apply.systemctl", lambda *a: self.systemctl.append(a)
        )
        monkeypatch.setattr("startup.node.desired.sources.ORDERS_SECONDS", 0.1)
        monkeypatch.setattr("startup.node.swarm.decide.PROBATION", 0.2)
        monkeypatch.setattr("startup.node.follower._STARTS", 0.1)
        monkeypatch.setattr("startup.node.swarm_loop.LOOK", 0.05)
        monkeypatch.setattr("startup.node.swarm_loop.ROLL", 0.0)
        self.old = google.put("pilot-daemon", b"old")
        google.set("pilot-role", "swarm")
        self.declare()
        self.write_spec()
        self.swarm: SwarmLoop
        self.wake: Wake

    def mount(self) -> None:
        line = f"40 1 8:16 / {self.paths.state} rw - ext4 /dev/sdb rw\n"
        (self.paths.root / "proc/self/mountinfo").write_text(line, encoding="ascii")

    def declare(self, **changes: Any) -> None:
        """Write the instance's metadata, as `pulumi up` does."""
        endpoints = {"storage": f"http://{self.google.host}"}
        changes.setdefault("release", {"version": "1.0", "daemon": self.old})
        changes.setdefault("agents", 6)
        changes.setdefault("roll", ROLL)
        changes.setdefault("window", 2)
        self.google.set("pilot-spec", specs.text(specs.swarm(endpoints=endpoints, **changes)))

    def write_spec(self) -> None:
        """Write the spec, as the startup script does at boot."""
        text = self.google.attributes["pilot-spec"]
        self.paths.spec.parent.mkdir(parents=True, exist_ok=True)
        self.paths.spec.write_text(text, encoding="utf-8")

    def start(self) -> None:
        self.wake = Wake()
        follower = Follower(
            paths=self.paths,
            known=recall_spec(self.paths),
            say=self.said.append,
            wake=self.wake,
            run_script=self._run_script,
            script_runs=lambda: self.script_at_work,
        )
        self.swarm = SwarmLoop(
            paths=self.paths,
            follower=follower,
            keeper=Keeper(
                paths=self.paths,
                goal=Goal(variants={}, window=1),
                systemd=self.pid1,
                say=self.said.append,
                mounted=lambda _: True,
            ),
            fetcher=release.Fetcher(
                opt=self.paths.opt,
                token=follower.server.token,
                say=self.said.append,
                wake=self.wake.set,
            ),
            private=lambda ports: self.private(self._sha256(ports[0])),
            say=self.said.append,
            address="10.10.0.7",
        )
        follower.start()
        self.swarm.fetcher.start()

    def stop(self) -> None:
        """As SIGKILL does: nothing is tidied up."""
        self.swarm.follower.stop()

    def until(self, done: Callable[[], bool]) -> None:
        limit = time.monotonic() + SECONDS
        woken = True
        while not done():
            assert time.monotonic() < limit, (self.said[-12:], self.status())
            pause = self.swarm.round(woken=woken)
            self.pid1.settle()
            woken = self.wake.wait(min(pause, 0.05))

    def status(self) -> dict[str, Any]:
        return document(self.swarm.facts(Sample(), Published(), started=0.0))

    def phase(self) -> str:
        return str(self.status()["phase"])

    def running(self) -> dict[str, int]:
        """Ready agents of each release."""
        return dict(self.status()["release"]["agents"])

    def environment(self, port: int) -> str:
        return (self.paths.chosen / str(port) / "agent.env").read_text(encoding="utf-8")

    def _sha256(self, port: int) -> str:
        about = (self.paths.chosen / str(port) / "variant.json").read_bytes()
        return str(json.loads(about)["release"])

    def _behave(self, port: int) -> str:
        return self.behave(port, self._sha256(port))

    def _run_script(self, _: Paths) -> None:
        self.scripts += 1


@pytest.fixture
def vm(tmp_path: Path, google: Google, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service(tmp_path / "root", google, monkeypatch)
    service.start()
    yield service
    service.stop()


def lives(vm: Service) -> dict[int, int]:
    """Which life each agent that runs is in."""
    return {port: vm.pid1.started.count(port) for port in agent_units.running(vm.paths)}


def new_release(vm: Service, data: bytes = b"new") -> str:
    reference = vm.google.put("pilot-daemon", data)
    vm.declare(release={"version": "2.0", "daemon": reference})
    return reference["sha256"]


def test_a_new_vm_comes_up_and_accepts_its_release(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    assert vm.running() == {vm.old["sha256"]: 6}
    assert vm.status()["release"]["version"] == "1.0"
    assert vm.status()["spec"]["state"] == "current"
    vm.until(lambda: vm.status()["orders"]["state"] == "absent")
    assert str((vm.paths.opt / "current").readlink()) == f"releases/{vm.old['sha256']}"
    assert (vm.paths.node_state).stat().st_mode & 0o777 == 0o700
    assert json.loads((vm.paths.node_state / "spec.json").read_bytes())["name"] == "swarm-1"


def test_a_change_of_agents_and_environment_is_live(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    vm.declare(agents=8)
    vm.until(lambda: vm.status()["agents"]["running"] == 8 and vm.phase() == "whole")
    assert before.items() <= lives(vm).items()
    vm.declare(agents=8, environment={"GOGC": "50"})
    vm.until(lambda: "GOGC" in vm.environment(10001) and vm.phase() == "whole")
    vm.until(lambda: all("GOGC" in vm.environment(port) for port in range(10001, 10009)))
    assert not before.items() & lives(vm).items()
    vm.declare(agents=3, environment={"GOGC": "50"})
    vm.until(lambda: vm.status()["agents"]["running"] == 3 and vm.phase() == "whole")


def test_limits_follow_the_spec_and_systemd_reloads_once(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    reloads = vm.systemctl.count(("daemon-reload",))
    memory = {**specs.swarm()["memory"], "reserveMb": 1500}
    vm.declare(memory=memory)
    vm.until(lambda: any("sha256" in line and "another spec" in line for line in vm.said))
    text = (vm.paths.units / "pilot.slice").read_text(encoding="utf-8")
    assert f"MemoryMax={(4096 - 1500) << 20}" in text
    vm.declare(memory=memory, window=1)
    vm.until(lambda: vm.status()["window"]["limit"] == 1)
    assert vm.systemctl.count(("daemon-reload",)) == reloads + 1


def test_a_killed_service_touches_no_agent(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    starts = list(vm.pid1.started)
    for _ in range(3):
        vm.stop()
        vm.start()
        vm.until(lambda: vm.phase() == "whole" and vm.status()["spec"]["state"] == "current")
    assert lives(vm) == before
    assert vm.pid1.started == starts


def test_without_google_the_service_goes_on_with_the_last_spec(vm: Service) -> None:
    vm.google.order("swarm-1", '{"schema": 1, "restart": "r1"}')
    vm.until(lambda: vm.phase() == "whole" and vm.status()["orders"]["restart"] == "r1")
    before = lives(vm)
    vm.stop()
    port = vm.google.server.server_port
    vm.google.stop()
    vm.start()
    vm.until(lambda: vm.phase() == "whole" and vm.status()["spec"]["state"] == "unreachable")
    vm.pid1.kill(10003)
    vm.until(lambda: vm.phase() == "whole" and vm.pid1.started[-1] == 10003)
    status = vm.status()
    assert (status["orders"]["state"], status["orders"]["restart"]) == ("unreachable", "r1")
    assert lives(vm) == {**before, 10003: before[10003] + 1}
    later = Google(port)
    later.attributes, later.objects = vm.google.attributes, vm.google.objects
    vm.google.server, vm.google.thread = later.server, later.thread
    vm.until(lambda: vm.status()["spec"]["state"] == "current")


@pytest.mark.parametrize(
    ("text", "state", "said"),
    [
        (None, "absent", "no pilot-spec"),
        ("{", "malformed", "not JSON"),
        (specs.text(specs.swarm(window=0)), "malformed", "window: must be 1 to 1000, is 0"),
        (specs.text(specs.rendezvous()), "malformed", "this VM is a swarm: replace it"),
        (
            specs.text(specs.swarm(memory={**specs.swarm()["memory"], "reserveMb": 4096})),
            "malformed",
            "memory.reserveMb: 4096 is all of this VM's 4096 MiB",
        ),
    ],
)
def test_a_spec_that_cannot_be_used_changes_nothing(
    vm: Service, text: str | None, state: str, said: str
) -> None:
    vm.until(lambda: vm.phase() == "whole" and vm.status()["spec"]["state"] == "current")
    before = lives(vm)
    vm.google.set("pilot-spec", text)
    vm.until(lambda: vm.status()["spec"]["state"] == state)
    assert said in vm.status()["spec"]["error"]
    assert lives(vm) == before
    # Neither does a restart of the service forget the good one.
    vm.stop()
    vm.start()
    vm.until(lambda: vm.status()["spec"]["state"] == state and vm.phase() == "whole")
    assert lives(vm) == before


def test_orders_hold_restart_and_their_absence(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    vm.google.order("swarm-1", '{"schema": 1, "hold": true}')
    vm.until(lambda: vm.phase() == "held")
    assert not lives(vm)
    vm.google.order("swarm-1", '{"schema": 1, "restart": "first"}')
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    vm.google.order("swarm-1", '{"schema": 1, "restart": "second"}')
    vm.until(lambda: not before.items() & lives(vm).items() and vm.phase() == "whole")
    before = lives(vm)
    # Malformed, then gone: whoever was restarted once is not restarted again.
    vm.google.order("swarm-1", '{"schema": 1, "hold": "yes", "wat": 1, "requires": ["wat"]}')
    vm.until(lambda: vm.status()["orders"]["state"] == "malformed")
    assert "wat: is not known to this version" in vm.status()["orders"]["error"]
    assert "hold: must be true or false" in vm.status()["orders"]["error"]
    vm.google.order("swarm-1", None)
    vm.until(lambda: vm.status()["orders"]["state"] == "absent")
    assert vm.status()["orders"]["restart"] == "second"
    vm.stop()
    vm.start()
    vm.until(lambda: vm.phase() == "whole" and vm.status()["orders"]["state"] == "absent")
    assert lives(vm) == before
    assert recall_orders(vm.paths, "swarm", vm.said.append).restarted == "second"


def test_no_more_than_the_window_is_down_for_a_restart(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    least = [6]

    def restarted() -> bool:
        least.append(len(lives(vm)))
        return vm.status()["orders"]["restart"] == "r" and vm.phase() == "whole"

    vm.google.order("swarm-1", '{"schema": 1, "restart": "r"}')
    vm.until(restarted)
    assert 6 - min(least) in (1, 2)


def test_the_hosts_maintenance(vm: Service) -> None:
    vm.google.event("NONE")
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    vm.google.event("MIGRATE_ON_HOST_MAINTENANCE")
    vm.until(lambda: "host maintenance: MIGRATE_ON_HOST_MAINTENANCE" in vm.said)
    assert lives(vm) == before
    vm.google.event("TERMINATE_ON_HOST_MAINTENANCE")
    vm.until(lambda: vm.phase() == "held")
    vm.google.event("NONE")
    vm.until(lambda: vm.phase() == "whole")


def test_a_release_rolls(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    sha256 = new_release(vm)
    vm.until(lambda: vm.status()["release"]["sha256"] == sha256)
    vm.until(lambda: vm.phase() == "whole")
    assert vm.running() == {sha256: 6}
    assert str((vm.paths.opt / "current").readlink()) == f"releases/{sha256}"
    lines = [line for line in vm.said if line.startswith("roll: ")]
    assert [line for line in lines if "agents get" in line] == [
        f"roll: 3 of 6 agents get 2.0 ({sha256[:12]})",
        f"roll: 6 of 6 agents get 2.0 ({sha256[:12]})",
    ]


def test_a_release_that_exits_takes_one_batch_and_stays_rejected(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    old = vm.old["sha256"]
    bad = hashlib.sha256(b"bad").hexdigest()
    vm.behave = lambda port, sha256: "dies" if sha256 == bad else "ready"
    before = lives(vm)
    assert new_release(vm, b"bad") == bad
    vm.until(lambda: vm.status()["roll"]["state"] == "halted" and vm.phase() == "whole")
    assert vm.running() == {old: 6}
    # At most the batch was touched.
    assert sum(lives(vm)[name] == life for name, life in before.items()) >= 3
    assert vm.status()["roll"]["rejected"][0]["sha256"] == bad
    assert "ended (exit-code, status 1)" in vm.status()["roll"]["reason"]
    # A reboot: all of /run is gone, and every agent.
    vm.stop()
    for port in range(10001, 10007):
        vm.pid1.kill(port)
        vm.pid1.socket(port).unlink(missing_ok=True)
        (vm.paths.chosen / str(port)).unlink(missing_ok=True)
    starts = len(vm.pid1.started)
    vm.start()
    vm.until(lambda: vm.phase() == "whole" and vm.status()["spec"]["state"] == "current")
    assert vm.status()["roll"]["state"] == "halted"
    assert vm.running() == {old: 6}
    assert len(vm.pid1.started) == starts + 6


def test_a_binary_that_is_not_to_be_had_touches_nobody(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    sha256 = hashlib.sha256(b"later").hexdigest()
    reference = {"object": f"releases/{sha256}/pilot-daemon", "sha256": sha256}
    vm.declare(release={"version": "2.0", "daemon": reference})
    vm.until(lambda: "404" in vm.status()["roll"]["reason"])
    assert vm.status()["roll"]["state"] == "waiting"
    assert lives(vm) == before
    vm.google.put("pilot-daemon", b"later")
    vm.until(lambda: vm.running() == {sha256: 6})


def script(vm: Service, text: str, *, expected: bool = True, after: int = 0) -> str:
    """Put another script into the project, and let the spec expect it."""
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    vm.google.set("startup-script", text, project=True)
    if expected:
        vm.declare(script={"sha256": sha256, "afterSeconds": after})
    return sha256


def uptime(vm: Service, seconds: float) -> None:
    (vm.paths.root / "proc/uptime").write_text(f"{seconds} 1.0\n", encoding="ascii")


def state(vm: Service) -> str:
    return str(vm.status()["script"]["state"])


def guard(vm: Service, sha256: str) -> None:
    vm.paths.guard.write_text(f"boot {sha256}\n", encoding="ascii")


def test_the_projects_script_is_applied_where_it_is_the_expected_one(vm: Service) -> None:
    sha256 = script(vm, "#!/bin/bash\n# 1")
    guard(vm, sha256)
    vm.until(lambda: vm.status()["script"]["state"] == "current")
    assert vm.scripts == 0
    # Another one that nobody expects.
    script(vm, "#!/bin/bash\nrm -rf /", expected=False)
    vm.until(lambda: vm.status()["script"]["state"] == "foreign")
    assert vm.scripts == 0
    second = script(vm, "#!/bin/bash\n# 2")
    vm.until(lambda: vm.scripts == 1)
    # It failed: not again at once, not even by another service.
    vm.stop()
    vm.start()
    vm.until(lambda: vm.status()["script"]["state"] == "failed")
    vm.until(lambda: vm.phase() == "whole")
    assert vm.scripts == 1
    guard(vm, second)
    vm.until(lambda: vm.status()["script"]["state"] == "current")
    vm.google.set("startup-script", None, project=True)
    vm.until(lambda: vm.status()["script"]["state"] == "absent")


def test_a_running_vm_waits_for_its_turn_with_a_new_script(vm: Service) -> None:
    first = script(vm, "#!/bin/bash\n# 1")
    guard(vm, first)
    vm.until(lambda: state(vm) == "current")
    assert vm.status()["script"]["turn"] is None
    second = script(vm, "#!/bin/bash\n# 2", after=240)
    vm.until(lambda: state(vm) == "waiting")
    told = vm.status()
    # What it has, what it will have, and when.
    assert (told["node"]["script"], told["script"]["expected"]) == (first, second)
    assert told["script"]["turn"] is not None
    uptime(vm, 1239)
    # Counted from when it was first expected, not from when this process was started.
    vm.stop()
    vm.start()
    vm.until(lambda: state(vm) == "waiting" and vm.phase() == "whole")
    assert vm.scripts == 0
    uptime(vm, 1241)
    vm.until(lambda: vm.scripts == 1)
    guard(vm, second)
    vm.until(lambda: state(vm) == "current")
    assert vm.status()["script"]["turn"] is None
    assert not (vm.paths.run / "turn.json").exists()


def test_the_commit_before_ends_a_turn_that_has_not_come(vm: Service) -> None:
    text = "#!/bin/bash\n# 1"
    guard(vm, script(vm, text))
    vm.until(lambda: state(vm) == "current")
    second = "#!/bin/bash\n# 2"
    script(vm, second, after=240)
    vm.until(lambda: state(vm) == "waiting")
    uptime(vm, 1230)
    script(vm, text, after=240)
    vm.until(lambda: state(vm) == "current")
    # The same again is another turn, from its beginning.
    script(vm, second, after=240)
    vm.until(lambda: state(vm) == "waiting")
    uptime(vm, 1450)
    vm.until(lambda: vm.phase() == "whole")
    assert vm.scripts == 0
    uptime(vm, 1471)
    vm.until(lambda: vm.scripts == 1)


@pytest.mark.parametrize("left", ["", "working\n"], ids=["boots", "half way"])
def test_a_vm_on_which_no_scripts_work_is_done_waits_for_no_turn(vm: Service, left: str) -> None:
    if left:
        vm.paths.guard.write_text(left, encoding="ascii")
    script(vm, "#!/bin/bash\n# 2", after=240)
    vm.until(lambda: vm.scripts == 1)


def test_a_script_that_failed_is_said_and_another_one_mends_it_at_once(vm: Service) -> None:
    text = "#!/bin/bash\n# 1"
    guard(vm, script(vm, text))
    vm.until(lambda: state(vm) == "current")
    vm.script_at_work = True
    script(vm, "#!/bin/bash\n# 2")
    vm.until(lambda: vm.scripts == 1)
    vm.paths.guard.write_text("working\n", encoding="ascii")
    vm.until(lambda: vm.phase() == "whole")
    assert state(vm) == "applying"
    vm.script_at_work = False
    vm.until(lambda: state(vm) == "failed")
    assert "serial console" in vm.status()["script"]["error"]
    uptime(vm, 1599)
    vm.until(lambda: vm.phase() == "whole")
    assert vm.scripts == 1
    # Run again, and an alert as long as nobody has mended it.
    vm.script_at_work = True
    uptime(vm, 1601)
    vm.until(lambda: vm.scripts == 2)
    vm.until(lambda: state(vm) == "failed")
    vm.script_at_work = False
    sha256 = script(vm, text, after=240)
    vm.until(lambda: vm.scripts == 3)
    guard(vm, sha256)
    vm.until(lambda: state(vm) == "current")
    assert vm.status()["script"]["error"] == ""


def test_a_spec_of_a_newer_program_brings_the_script_that_understands_it(vm: Service) -> None:
    guard(vm, script(vm, "#!/bin/bash\n# 1"))
    vm.until(lambda: vm.status()["script"]["state"] == "current")
    text = "#!/bin/bash\n# newer"
    vm.google.set("startup-script", text, project=True)
    newer = {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    vm.declare(script=newer, shiny=True, requires=["shiny"], agents=7)
    vm.until(lambda: vm.scripts == 1)
    assert "shiny: is not known to this version" in vm.status()["spec"]["error"]
    assert vm.status()["agents"]["wanted"] == 6
    # What need not be understood holds up nothing of the rest, also while the VM waits its turn.
    vm.declare(script=newer, shiny=True, agents=7)
    vm.until(lambda: vm.status()["agents"]["running"] == 7)
    assert vm.status()["spec"]["state"] == "current"
    assert vm.status()["spec"]["ignored"] == ["shiny"]


def test_beside_a_ghost_no_script_is_run(vm: Service) -> None:
    vm.google.set("startup-script", "#!/bin/bash\nghost")
    vm.until(lambda: vm.status()["ghosts"] == ["startup-script"])
    script(vm, "#!/bin/bash\n# 2")
    vm.until(lambda: vm.status()["script"]["state"] == "applying")
    vm.until(lambda: vm.phase() == "whole")
    assert vm.scripts == 0
    vm.google.set("startup-script", None)
    vm.until(lambda: vm.scripts == 1)


def test_a_ghost_in_the_project_is_seen_and_starts_nothing_anew(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    started = list(vm.pid1.started)
    vm.google.set("enable-osconfig", "TRUE", project=True)
    vm.until(lambda: vm.status()["ghosts"] == ["project/enable-osconfig"])
    vm.google.set("enable-osconfig", "FALSE", project=True)
    vm.until(lambda: vm.status()["ghosts"] == [])
    assert vm.pid1.started == started


def test_nothing_is_started_without_the_state_disk(vm: Service) -> None:
    (vm.paths.root / "proc/self/mountinfo").write_text("1 1 8:1 / / rw - ext4 a rw\n", "ascii")
    vm.until(lambda: any("is not mounted" in line for line in vm.said))
    assert not vm.pid1.started
    vm.mount()
    vm.until(lambda: vm.phase() == "whole")


def test_a_mount_point_of_any_bytes_hides_no_disk(tmp_path: Path) -> None:
    paths = Paths(root=tmp_path)
    table = paths.at("/proc/self/mountinfo")
    table.parent.mkdir(parents=True)
    strange = b"".join(
        b"41 1 8:32 / /mnt/" + name + b" rw - ext4 /dev/sdc rw\n"
        for name in (b"\xff\xfe", "\x85\u2028".encode(), b"\x0c\r")
    )
    table.write_bytes(strange)
    assert not paths.is_mounted(paths.state)
    table.write_bytes(strange + f"40 1 8:16 / {paths.state} rw - ext4 /dev/sdb rw\n".encode())
    assert paths.is_mounted(paths.state)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device", "roll.json")


def test_a_state_disk_that_takes_no_write_does_not_switch_the_keeper_off(
    vm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    with monkeypatch.context() as disk:
        disk.setattr("startup.node.rollout.roll_state.remember", full)
        sha256 = new_release(vm)
        vm.until(lambda: "No space left" in str(vm.status()["last_error"]))
        vm.pid1.kill(10003)
        vm.until(lambda: vm.pid1.started[-1] == 10003 and vm.phase() == "whole")
        assert lives(vm) == {**before, 10003: 2}
        # A hold is carried out, whatever can be written down, and ends.
        vm.google.order("swarm-1", '{"schema": 1, "hold": true}')
        vm.until(lambda: vm.phase() == "held" and not lives(vm))
        vm.google.order("swarm-1", None)
        vm.until(lambda: vm.phase() == "whole" and len(lives(vm)) == 6)
        assert vm.running() == {vm.old["sha256"]: 6}
        assert sum("No space left" in line for line in vm.said) == 1
    vm.until(lambda: vm.running() == {sha256: 6})


WATCHED = {**ROLL, "watchSeconds": 600}


def on_trial(vm: Service, content: bytes) -> str:
    """Have a release tried by a batch, which is watched for as long as the test takes; its
    sha256."""
    reference = vm.google.put("pilot-daemon", content)
    vm.declare(release={"version": "2.0", "daemon": reference}, roll=WATCHED)
    vm.until(lambda: vm.status()["roll"]["state"] == "watching")
    assert vm.running() == {vm.old["sha256"]: 3, reference["sha256"]: 3}
    return reference["sha256"]


@pytest.mark.parametrize("how", ["it dies", "by order"])
def test_the_way_back_needs_no_disk(vm: Service, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    vm.until(lambda: vm.phase() == "whole")
    old, bad = vm.old["sha256"], hashlib.sha256(b"bad").hexdigest()
    dying = False
    vm.behave = lambda port, sha256: "dies" if dying and sha256 == bad else "ready"
    assert on_trial(vm, b"bad") == bad
    with monkeypatch.context() as disk:
        disk.setattr("startup.node.rollout.roll_state.remember", full)
        if how == "it dies":
            dying = True
            for port in (10001, 10002):
                vm.pid1.kill(port)
        else:
            order = {"sha256": bad, "verdict": "reject", "id": "1"}
            vm.google.order("swarm-1", json.dumps({"schema": 1, "roll": order}))
        vm.until(lambda: vm.running() == {old: 6} and vm.phase() == "whole")
        assert vm.status()["roll"]["state"] == "halted"
        assert "No space left" in str(vm.status()["last_error"])
        assert roll_state.recall(vm.paths, vm.said.append).state == "watching"
    vm.until(lambda: roll_state.recall(vm.paths, vm.said.append).state == "halted")
    (rejected,) = roll_state.recall(vm.paths, vm.said.append).rejected
    assert rejected.sha256 == bad


def test_without_a_disk_another_release_ends_a_trial_and_waits(
    vm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.until(lambda: vm.phase() == "whole")
    mended = vm.google.put("pilot-daemon", b"mended")
    old, new = vm.old["sha256"], mended["sha256"]
    # On disk already: its roll could begin as the other one ends.
    vm.declare(release={"version": "3.0", "daemon": mended}, roll={**ROLL, "auto": False})
    vm.until(lambda: new in vm.swarm.fetcher.there())
    on_trial(vm, b"tried")
    with monkeypatch.context() as disk:
        disk.setattr("startup.node.rollout.roll_state.remember", full)
        vm.declare(release={"version": "3.0", "daemon": mended}, roll=WATCHED)
        vm.until(lambda: vm.running() == {old: 6} and vm.phase() == "whole")
        assert vm.status()["roll"]["state"] == "waiting"
        assert vm.status()["roll"]["sha256"] == new
    vm.declare(release={"version": "3.0", "daemon": mended})
    vm.until(lambda: vm.running() == {new: 6})


def test_without_a_disk_a_batch_is_watched_and_no_other_begins(
    vm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.until(lambda: vm.phase() == "whole")
    reference = vm.google.put("pilot-daemon", b"new")
    old, new = vm.old["sha256"], reference["sha256"]
    vm.declare(release={"version": "2.0", "daemon": reference}, roll={**ROLL, "watchSeconds": 1})
    vm.until(lambda: vm.status()["roll"]["state"] == "rolling")
    with monkeypatch.context() as disk:
        disk.setattr("startup.node.rollout.roll_state.remember", full)
        vm.until(lambda: vm.status()["roll"]["state"] == "watching")
        ends = time.monotonic() + 1.5
        vm.until(lambda: time.monotonic() > ends)
        assert vm.status()["roll"]["done"] == 3
        assert vm.running() == {old: 3, new: 3}
        assert "No space left" in str(vm.status()["last_error"])
    vm.until(lambda: vm.running() == {new: 6})


def test_a_spec_that_was_applied_halfway_and_taken_back_is_undone(
    vm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.until(lambda: vm.phase() == "whole" and vm.status()["spec"]["state"] == "current")
    monkeypatch.setattr("startup.node.follower._AGAIN", 0.1)
    before, known = lives(vm), vm.status()["spec"]["sha256"]
    slice_ = vm.paths.units / "pilot.slice"
    text = slice_.read_text(encoding="utf-8")

    def late(*command: str) -> None:
        raise subprocess.TimeoutExpired(("systemctl", *command), 120)

    with monkeypatch.context() as systemd:
        systemd.setattr("startup.node.setup.apply.systemctl", late)
        vm.declare(agents=8, memory={**specs.swarm()["memory"], "reserveMb": 1500})
        vm.until(lambda: "timed out" in str(vm.status()["last_error"]))
        assert slice_.read_text(encoding="utf-8") != text
        # The agents are kept by the spec that is known.
        vm.pid1.kill(10003)
        vm.until(lambda: vm.pid1.started[-1] == 10003 and vm.phase() == "whole")
        assert lives(vm) == {**before, 10003: 2}
        assert vm.status()["spec"]["sha256"] == known
        vm.declare()
        vm.until(lambda: vm.swarm.follower._attributes.latest().value == vm.google.attributes)
    reloads = vm.systemctl.count(("daemon-reload",))
    vm.until(lambda: vm.systemctl.count(("daemon-reload",)) > reloads)
    assert slice_.read_text(encoding="utf-8") == text
    vm.until(lambda: vm.phase() == "whole")
    assert vm.status()["spec"]["sha256"] == known


def test_a_state_disk_that_takes_no_write_holds_up_no_script(
    vm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard(vm, script(vm, "#!/bin/bash\n# 1"))
    vm.until(lambda: vm.phase() == "whole" and vm.status()["script"]["state"] == "current")
    write = files.write

    def read_only(path: Path, content: str, mode: int = 0o644) -> bool:
        if path.is_relative_to(vm.paths.state):
            raise OSError(30, "Read-only file system", str(path))
        return write(path, content, mode)

    with monkeypatch.context() as disk:
        disk.setattr("startup.node.machine.files.write", read_only)
        vm.google.order("swarm-1", '{"schema": 1, "restart": "r1"}')
        vm.until(lambda: vm.status()["orders"]["restart"] == "r1" and vm.phase() == "whole")
        script(vm, "#!/bin/bash\n# 2")
        vm.until(lambda: vm.scripts == 1)
        vm.until(lambda: "Read-only" in str(vm.status()["last_error"]))
        kept = (vm.paths.node_state / "spec.json").read_text(encoding="utf-8")
        assert kept != vm.google.attributes["pilot-spec"]
        assert recall_orders(vm.paths, "swarm", vm.said.append).restarted == ""
    # Once it takes one again, what was not written is.
    vm.until(lambda: recall_orders(vm.paths, "swarm", vm.said.append).restarted == "r1")
    kept = (vm.paths.node_state / "spec.json").read_text(encoding="utf-8")
    assert kept == vm.google.attributes["pilot-spec"]


def test_a_service_begins_with_a_spec_that_this_machine_can_be(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole" and vm.status()["spec"]["state"] == "current")
    good = vm.paths.spec.read_text(encoding="utf-8")
    memory = {**specs.swarm()["memory"], "reserveMb": 4096}
    vm.paths.spec.write_text(specs.text(specs.swarm(memory=memory)), encoding="utf-8")
    assert recall_spec(vm.paths).text == good
    (vm.paths.node_state / "spec.json").unlink()
    with pytest.raises(FinalError, match=r"reserveMb: 4096 is all of .*spec\.json is not there"):
        recall_spec(vm.paths)


def test_two_failures_that_alternate_are_said_once_each(vm: Service) -> None:
    for text in ("one", "two") * 50:
        vm.swarm.fault(text)
    assert [line for line in vm.said if line in ("one", "two")] == ["one", "two"]
    vm.swarm.clock = lambda: time.monotonic() + 3600
    vm.swarm.fault("one")
    assert vm.said[-1] == "one"


def test_a_service_that_cannot_decide_yet_stops_nobody(
    vm: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    vm.stop()
    unit = vm.paths.units / OWN.templates[0]
    text = unit.read_text(encoding="utf-8")
    with monkeypatch.context() as applied:
        applied.setattr("startup.node.setup.apply.apply_units", lambda *_: None)
        unit.unlink()
        vm.start()
        vm.until(lambda: unit.name in str(vm.status()["last_error"]))
        for _ in range(5):
            vm.swarm.round(woken=True)
        assert lives(vm) == before
        assert vm.status()["agents"]["running"] == 6
        # Held all the same.
        vm.google.order("swarm-1", '{"schema": 1, "hold": true}')
        vm.until(lambda: vm.phase() == "held" and not lives(vm))
        vm.google.order("swarm-1", None)
    unit.write_text(text, encoding="utf-8")
    vm.until(lambda: vm.phase() == "whole")


def test_agents_whose_links_and_binary_are_gone_go_on(vm: Service) -> None:
    vm.until(lambda: vm.phase() == "whole")
    before = lives(vm)
    vm.stop()
    for link in vm.paths.chosen.iterdir():
        link.unlink()
    binary = vm.paths.opt / "releases" / vm.old["sha256"] / "pilot-daemon"
    data = binary.read_bytes()
    binary.unlink()
    objects, vm.google.objects = vm.google.objects, {}
    vm.start()
    vm.until(lambda: "404" in str(vm.status()["last_error"]))
    for _ in range(5):
        vm.swarm.round(woken=True)
    assert lives(vm) == before
    binary.write_bytes(data)
    vm.google.objects = objects
    # They are known again only by being started: no more than a window at a time.
    vm.until(lambda: vm.running() == {vm.old["sha256"]: 6} and vm.phase() == "whole")


def test_no_thread_of_a_test_is_left() -> None:
    """Their questions end with the server; a source asks no more once it is stopped."""
    limit = time.monotonic() + SECONDS
    while any(t.name in ("orders", "maintenance") for t in threading.enumerate()):
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_units_name_the_variant() -> None:
    text = (units.TEMPLATES / SOURCE).read_text(encoding="utf-8")
    assert " /run/pilot/variant/%i/pilot-daemon " in text
