"""Commands on the VM: written down, carried out by the service, and watched."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from startup.node import __main__ as node
from startup.node import local_orders
from startup.node.desired import orders
from startup.node.machine.agent_units import LAYOUTS, Layout
from startup.node.machine.paths import Paths
from tests.startup import specs

PORTS = (10001, 10002, 10003)


class Vm:
    """Three agents that are folders; `sleep` is what the service does meanwhile."""

    def __init__(self, root: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = Paths(root=root)
        self.layout = layout
        self.paths.sockets.mkdir(parents=True)
        self.paths.node_state.mkdir(parents=True)
        self.paths.spec.write_text(specs.text(specs.swarm(agents=3)), encoding="utf-8")
        self.base = root / "sys/fs/cgroup/pilot.slice"
        self.life = 0
        self.up(*PORTS)
        self.steps: list[Callable[[], object]] = []
        monkeypatch.setattr("time.sleep", self.sleep)

    def up(self, *ports: int) -> None:
        """A new life for each, in a cgroup of its own."""
        for port in ports:
            self.down(port)
            folder = self.base / self.layout.cgroup(port)
            folder.mkdir(parents=True)
            (folder / "cgroup.procs").write_text("77\n", encoding="ascii")
            socket = self.layout.socket(self.paths, port)
            socket.parent.mkdir(parents=True, exist_ok=True)
            os.mknod(socket, 0o140600)

    def down(self, *ports: int) -> None:
        for port in ports:
            folder = self.base / self.layout.cgroup(port)
            if folder.exists():
                self.life += 1
                # Kept under another name: a file system gives the number of what is gone anew.
                folder.rename(folder.with_name(f".gone-{self.life}"))
            self.layout.socket(self.paths, port).unlink(missing_ok=True)

    def sleep(self, seconds: float) -> None:
        assert self.steps, "it waits for something that does not come"
        self.steps.pop(0)()

    def ordered(self) -> orders.Orders:
        return orders.parse(self.paths.orders.read_bytes(), "swarm")


@pytest.fixture(params=LAYOUTS, ids=["shared", "own"])
def vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Vm:
    return Vm(tmp_path, request.param, monkeypatch)


def test_drain_and_undrain(vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    vm.steps = [lambda: vm.down(10001), lambda: None, lambda: vm.down(10002, 10003)]
    assert local_orders.main(vm.paths, ["drain"]) == 0
    assert vm.ordered().hold
    assert vm.paths.orders.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().out.splitlines() == [
        "3 agents left",
        "2 agents left",
        "0 agents left",
        "drained; `pilot-node undrain` starts them again",
    ]
    vm.steps = [lambda: vm.up(*PORTS)]
    assert local_orders.main(vm.paths, ["undrain"]) == 0
    assert not vm.ordered().hold
    assert capsys.readouterr().out.splitlines() == [
        "0 of 3 agents ready",
        "3 of 3 agents ready",
        "done",
    ]


@pytest.mark.parametrize("word", ["undrain", "resume"])
def test_undrain_and_its_old_word_end_a_drain(
    vm: Vm, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(node, "paths_of", lambda _: vm.paths)
    vm.steps = [lambda: vm.down(*PORTS)]
    assert node.main(["drain"]) == 0
    vm.steps = [lambda: vm.up(*PORTS)]
    assert node.main([word]) == 0
    assert not vm.ordered().hold


def test_the_help_shows_undrain_and_not_its_old_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert node.main([]) == 2
    told = capsys.readouterr().err
    assert "undrain" in told
    assert "resume" not in told


def test_a_restart_is_done_when_none_is_in_its_old_life(
    vm: Vm, capsys: pytest.CaptureFixture[str]
) -> None:
    vm.steps = [lambda: vm.up(10001), lambda: vm.up(10002), lambda: vm.up(10003)]
    assert local_orders.main(vm.paths, ["restart"]) == 0
    first = vm.ordered().restart
    assert first.startswith("here-")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 of 3 agents ready, 3 still to be started anew"
    assert lines[-2:] == ["3 of 3 agents ready, 0 still to be started anew", "done"]
    # A drain and an undrain later are no other restart.
    vm.steps = []
    assert local_orders.main(vm.paths, ["undrain"]) == 0
    assert vm.ordered().restart == first


def test_a_vm_that_is_held_is_said(vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    local_orders.write(vm.paths, hold=True, restart="")
    assert local_orders.main(vm.paths, ["restart"]) == 0
    assert "this VM is held: nothing is started before `pilot-node undrain`" in (
        capsys.readouterr().out
    )
    assert vm.ordered().hold
    standing = orders.Standing(state="read", text='{"schema": 1, "hold": true}')
    orders.remember(vm.paths, standing)
    assert local_orders.main(vm.paths, ["undrain"]) == 0
    assert "before an order in the bucket says so" in capsys.readouterr().out


def test_an_interrupted_command_goes_on(vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    vm.steps = [interrupt]
    assert local_orders.main(vm.paths, ["drain"]) == 130
    assert "drain goes on without you" in capsys.readouterr().out
    assert vm.ordered().hold


def test_a_silent_service_is_missed(vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    vm.paths.status.write_text("{}", encoding="utf-8")
    os.utime(vm.paths.status, (0, 0))
    vm.steps = [lambda: vm.down(*PORTS)]
    assert local_orders.main(vm.paths, ["drain"]) == 0
    assert "see `systemctl status pilot-node`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "arguments", "said"),
    [
        (lambda vm: vm.paths.spec.unlink(), ["drain"], "is this VM the fleet's?"),
        (lambda vm: vm.paths.spec.write_text("{", "utf-8"), ["drain"], "not JSON"),
        (
            lambda vm: vm.paths.spec.write_text(specs.text(specs.rendezvous()), "utf-8"),
            ["restart"],
            "it has no agents",
        ),
        (lambda vm: None, ["drain", "now"], "takes no argument"),
        (lambda vm: None, ["status"], "is not there yet"),
    ],
)
def test_commands_that_cannot_be_carried_out(
    vm: Vm,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Vm], object],
    arguments: list[str],
    said: str,
) -> None:
    spoil(vm)
    assert local_orders.main(vm.paths, arguments) == 1
    assert said in capsys.readouterr().err
    assert not vm.paths.orders.exists()


def test_the_status(vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    vm.paths.status.write_text('{"phase": "whole", "schema": 1}', encoding="utf-8")
    assert local_orders.main(vm.paths, ["status"]) == 0
    assert json.loads(capsys.readouterr().out)["phase"] == "whole"


def test_one_agent_is_found_by_its_port(vm: Vm, capsys: pytest.CaptureFixture[str]) -> None:
    assert local_orders.main(vm.paths, ["agent", "10002"]) == 0
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert said["unit"] == vm.layout.unit(10002)
    assert said["runs"] == "as process 77"
    assert said["user"] == str(vm.layout.user(10002))
    assert said["socket"] == str(vm.layout.socket(vm.paths, 10002))
    vm.down(10002)
    assert local_orders.main(vm.paths, ["agent", "10002"]) == 0
    out = capsys.readouterr().out
    assert "runs     no\n" in out
    assert ", not there\n" in out


@pytest.mark.parametrize("words", [[], ["10004"], ["x"], ["10001", "10002"], ["-1"]])
def test_another_port_is_no_agent(
    vm: Vm, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert local_orders.main(vm.paths, ["agent", *words]) == 1
    said = "pilot-node: agent: needs the port of an agent, from 10001 to 10003\n"
    assert capsys.readouterr().err == said


def test_an_agent_that_ends_while_it_is_looked_at_is_not_ready(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat
    gone = vm.base / vm.layout.cgroup(10002)

    def ended(path: Path, **how: bool) -> os.stat_result:
        if path == gone and not sys._getframe(1).f_code.co_name.startswith("is_"):
            raise FileNotFoundError(path)
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", ended)
    seen = local_orders.look(vm.paths)
    assert set(seen.running) == seen.ready == {10001, 10003}
