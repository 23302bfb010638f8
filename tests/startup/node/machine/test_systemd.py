"""systemctl as it is called, and what is made of its answers."""

from __future__ import annotations

import signal

import pytest

from startup.node import swarm_loop
from startup.node.machine.systemd import BATCH, Systemctl, SystemdError, UnitState
from tests.startup.conftest import Vm


@pytest.fixture
def systemctl(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    monkeypatch.setenv("PATH", vm.environment["PATH"])
    return Systemctl()


def test_starts_are_queued_in_batches(vm: Vm, systemctl: Systemctl) -> None:
    systemctl.start([f"u{i}" for i in range(BATCH + 1)])
    first, second = vm.calls("systemctl")
    assert first.startswith("systemctl --no-block start u0 u1 ")
    assert second == f"systemctl --no-block start u{BATCH}"
    systemctl.stop(["a", "b"])
    assert vm.calls("systemctl")[-1] == "systemctl --no-block stop a b"
    systemctl.start([])
    assert len(vm.calls("systemctl")) == 3


def test_states(vm: Vm, systemctl: Systemctl) -> None:
    # As systemctl 252 prints it: no Job= where there is none, blocks apart by an empty line.
    vm.stub(
        "systemctl",
        "printf '%s\\n' Result=exit-code ExecMainStatus=1 Id=a ActiveState=failed '' "
        "Result=success ExecMainStatus=0 Id=b ActiveState=inactive Job=77 '' "
        "Result=success ExecMainStatus=0 Id=c ActiveState=active",
    )
    states = systemctl.states(["a", "b", "c"])
    assert states["a"] == UnitState(active="failed", job=False, result="exit-code", exit_status="1")
    # The second is not over: its job has not run yet.
    assert [states[unit].ended for unit in "abc"] == [True, False, False]


@pytest.mark.parametrize(("says", "stopping"), [("stopping", True), ("degraded", False)])
def test_whether_the_system_goes_down(
    vm: Vm, systemctl: Systemctl, says: str, stopping: bool
) -> None:
    vm.stub("systemctl", f"echo {says}; exit 1")
    assert systemctl.stopping() is stopping
    assert vm.calls("systemctl") == ["systemctl is-system-running"]


def test_a_failure_has_the_message_of_systemctl(vm: Vm, systemctl: Systemctl) -> None:
    vm.stub("systemctl", "echo 'Unit x.service not found.' >&2; exit 5")
    with pytest.raises(SystemdError, match=r"start x: Unit x\.service not found\."):
        systemctl.start(["x"])


def test_no_systemctl_at_all(vm: Vm, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(vm.root))
    with pytest.raises(SystemdError):
        systemctl.start(["x"])


def test_after_hurry_a_call_does_not_wait_long(
    vm: Vm, systemctl: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("startup.node.machine.systemd.HURRIED", 0.0)
    vm.stub("systemctl", "exec sleep 1000")
    # As SIGTERM does, while a call is under way.
    before = signal.signal(signal.SIGALRM, lambda *_: systemctl.hurry())
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(SystemdError, match="start x: no answer within 0 s"):
            systemctl.start(["x"])
    finally:
        signal.signal(signal.SIGALRM, before)


def test_whether_the_system_goes_down_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    answers: list[bool | None] = [None, True, None, None]

    def stopping(_: Systemctl) -> bool:
        if (answer := answers.pop(0)) is None:
            raise SystemdError("no answer")
        return answer

    monkeypatch.setattr(Systemctl, "stopping", stopping)
    assert swarm_loop._goes_down(Systemctl(), said.append)
    assert said == ["is the system going down? no answer"]
    assert not swarm_loop._goes_down(Systemctl(), said.append)
    assert said[-1].endswith("no answer: the agents are left to it")
