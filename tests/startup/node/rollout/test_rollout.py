"""The roll of a release, decided purely: a VM that is a handful of numbers."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from startup.node.desired.orders import GO, REJECT, ReleaseVerdict
from startup.node.desired.spec import Roll
from startup.node.machine.paths import Paths
from startup.node.machine.retry import FinalError
from startup.node.rollout import roll_state, rollout
from startup.node.rollout.roll_state import (
    HALTED,
    NONE,
    ROLLING,
    WAITING,
    WATCHING,
    Release,
    RollState,
)
from startup.node.rollout.rollout import RollObserved, advance

OLD = Release(version="1.0", sha256="a" * 64)
NEW = Release(version="2.0", sha256="b" * 64)
PORTS = tuple(range(10001, 10201))
MIB = float(1 << 20)


class Vm:
    """Agents that do what they are told at once, but for `ill`; the clock moves by seconds."""

    def __init__(self, ports: Sequence[int] = PORTS) -> None:
        self.ports = ports
        self.state = RollState(accepted=OLD, target=OLD)
        self.on = dict.fromkeys(ports, OLD.sha256)
        self.up = dict.fromkeys(ports, 0.0)
        self.failures: dict[int, int] = {}
        self.why: dict[int, str] = {}
        self.ill: frozenset[int] = frozenset()
        self.said: list[str] = []
        self.affected: set[int] = set()
        self.seen = RollObserved(
            now=1000.0,
            time=1.7e9,
            target=NEW,
            settings=Roll(auto=True, batch=50, watch_seconds=60),
            there=frozenset({OLD.sha256, NEW.sha256}),
            ports=ports,
        )

    def second(self) -> None:
        """One second: agents follow the goal, then the roll looks."""
        for port, release in rollout.releases(self.state, self.ports).items():
            if self.on.get(port) != release.sha256 and not self.seen.held:
                self.on[port] = release.sha256
                if release == NEW:
                    self.affected.add(port)
                if release == NEW and port in self.ill:
                    self.up.pop(port, None)
                else:
                    self.up[port] = self.seen.now
        self.seen = replace(
            self.seen,
            now=self.seen.now + 1,
            on=dict(self.on),
            ready=frozenset(self.up),
            up_since=dict(self.up),
            failures=dict(self.failures),
            why=dict(self.why),
        )
        self.state, said = advance(self.state, self.seen)
        self.said += said

    def until(self, state: str, limit: int = 2000) -> None:
        for _ in range(limit):
            if self.state.state == state:
                return
            self.second()
        raise AssertionError((self.state, self.said[-3:]))

    def fails_again(self, *ports: int) -> None:
        """One agent more than the tolerance of the first batch, 10009 and 10010, or `ports`."""
        for port in ports or (10009, 10010):
            self.fails(port)
            self.fails(port)

    def fails(self, port: int, why: str = "ended (exit-code, status 2)") -> None:
        self.failures[port] = self.failures.get(port, 0) + 1
        self.why[port] = why
        self.up.pop(port, None)


def begun() -> Vm:
    vm = Vm()
    vm.until(ROLLING)
    return vm


def watched() -> Vm:
    vm = begun()
    vm.until(WATCHING)
    return vm


def test_the_first_release_is_accepted_at_once() -> None:
    vm = Vm()
    state, said = advance(RollState(), vm.seen)
    assert (state.accepted, state.state) == (NEW, NONE)
    assert len(said) == 1
    assert advance(state, vm.seen) == (state, ())


def test_batches_each_watched() -> None:
    vm = begun()
    sizes, first = [vm.state.done], vm.seen.now
    while vm.state.state != NONE:
        if vm.state.done != sizes[-1]:
            sizes.append(vm.state.done)
        vm.second()
    assert sizes == [50, 100, 150, 200]
    assert vm.seen.now - first >= 4 * 60
    assert (vm.state.accepted, vm.state.previous) == (NEW, OLD)
    assert set(vm.on.values()) == {NEW.sha256}


def test_the_next_batch_waits_until_all_of_this_one_are_ready() -> None:
    vm = Vm()
    vm.ill = frozenset({10007})
    vm.until(ROLLING)
    for _ in range(300):
        vm.second()
    assert (vm.state.state, vm.state.done) == (ROLLING, 50)
    vm.up[10007] = vm.seen.now
    vm.until(WATCHING, 3)


def rejected(vm: Vm, reason: str) -> None:
    vm.until(HALTED, 200)
    assert reason in vm.state.reason
    assert vm.affected <= set(PORTS[:50])
    vm.second()
    assert set(vm.on.values()) == {OLD.sha256}
    assert [each.sha256 for each in vm.state.rejected] == [NEW.sha256]
    assert vm.state.accepted == OLD
    # And it stays so.
    for _ in range(100):
        vm.second()
    assert vm.state.state == HALTED


def test_one_that_exits() -> None:
    vm = Vm()
    vm.ill = frozenset(PORTS)
    vm.until(ROLLING)
    vm.second()
    # A window's worth of them, and no second failure: nobody is held to account for a first one
    # while none comes up.
    for port in PORTS[:15]:
        vm.fails(port)
    rejected(vm, "15 of 50 agents failed, as agent 10001: ended (exit-code, status 2)")


def test_one_that_fails_again_and_again_among_few() -> None:
    """Fewer than fifty have none to spare: one in two, or the rendezvous, would be accepted."""
    vm = Vm(PORTS[:49])
    vm.until(WATCHING)
    vm.fails(10009)
    vm.second()
    assert vm.state.state == WATCHING
    vm.fails(10009)
    vm.until(HALTED, 2)
    assert "1 of 49 agents failed, as agent 10009: ended" in vm.state.reason


def test_one_in_fifty_may_be_ill_with_any_release() -> None:
    """Nobody knows whose fault it is, and an agent that nothing helps must not hold up a roll."""
    vm = watched()
    vm.ill = frozenset({10009})
    vm.fails_again(10009, 10009)
    vm.until(NONE)
    assert (vm.state.accepted, vm.state.rejected) == (NEW, ())
    assert any("all 200 agents have it" in line for line in vm.said)


def test_among_few_all_have_to_come_up() -> None:
    """Also one that was ill before, and for a while is not tried."""
    vm = Vm(PORTS[:49])
    vm.fails_again(10009)
    vm.ill = frozenset({10009})
    vm.until(ROLLING)
    for _ in range(300):
        vm.second()
    assert vm.state.state == ROLLING
    vm.up[10009] = vm.seen.now
    vm.until(NONE)
    assert vm.state.accepted == NEW


def test_one_more_than_that_may_not() -> None:
    vm = watched()
    vm.fails_again()
    rejected(vm, "2 of 50 agents failed, as agent 10009: ended")


def test_one_failure_of_one_agent_is_no_reason() -> None:
    vm = watched()
    vm.fails(10009)
    vm.second()
    vm.up[10009] = vm.seen.now
    vm.until(NONE)
    assert vm.state.accepted == NEW


@pytest.mark.parametrize("why", ["no socket after 60 s", "register: registry: request failed"])
def test_one_that_hangs_or_is_refused_is_given_a_minute(why: str) -> None:
    """It may be the registry: no agent of any release would come up."""
    vm = Vm()
    vm.ill = frozenset(PORTS)
    vm.until(ROLLING)
    for port in PORTS[:15]:
        vm.fails(port, why)
    for _ in range(50):
        vm.second()
    assert vm.state.state == ROLLING
    rejected(vm, why)


def test_a_registry_that_comes_back_in_time() -> None:
    vm = Vm()
    vm.ill = frozenset(PORTS[:15])
    vm.until(ROLLING)
    for port in PORTS[:15]:
        vm.fails(port, "registry: request failed")
    for _ in range(30):
        vm.second()
    for port in PORTS[:15]:
        vm.up[port] = vm.seen.now
        # It is remembered for a minute, as the keeper does.
        vm.failures[port] = 1
    for _ in range(59):
        vm.second()
    assert vm.state.state == WATCHING
    vm.failures.clear()
    vm.until(NONE)
    assert vm.state.accepted == NEW


@pytest.mark.parametrize("failing", [1, 15])
def test_a_registry_that_is_away_for_both_releases_is_waited_for(failing: int) -> None:
    """The fleet was switched on with it, in the middle of the roll."""
    vm = watched()
    vm.state = replace(vm.state, state=ROLLING, watch=None)
    vm.up.clear()
    vm.second()
    for port in PORTS[:failing]:
        vm.fails(port, "no socket after 10 s")
    for _ in range(200):
        vm.second()
    assert vm.state.state == ROLLING
    # It answers: those that never failed are the first to come up.
    vm.up[PORTS[100]] = vm.seen.now
    for _ in range(59):
        vm.second()
    assert vm.state.state == ROLLING
    # And with the new release still none.
    rejected(vm, f"{failing} of 50 agents failed, as agent 10001: no socket")


def test_a_registry_that_goes_away_in_the_middle_is_given_a_minute() -> None:
    vm = watched()
    for port in PORTS[:15]:
        vm.fails(port, "registry: request failed")
    for _ in range(50):
        vm.second()
    assert vm.state.state == WATCHING
    rejected(vm, "15 of 50 agents failed")


def test_those_that_die_while_they_are_watched() -> None:
    """Steady ones that die are no trouble of the keeper's: it starts them again at once."""
    vm = watched()
    for port in PORTS[10:13]:
        vm.up[port] = vm.seen.now + 0.5
    rejected(vm, "3 of 50 agents failed, as agent 10011: died")


def test_a_kernel_line_and_a_death_reject_a_release() -> None:
    vm = watched()
    vm.seen = replace(vm.seen, kernel=("eth0: link is up",))
    vm.second()
    vm.seen = replace(vm.seen, kernel=("Killed process 77 (pilot-daemon) total-vm:9",))
    vm.second()
    vm.seen = replace(vm.seen, kernel=())
    vm.second()
    # It may be another's, of the old release: only with a death in the batch it is the release's.
    assert vm.state.state == WATCHING
    vm.up[10012] = vm.seen.now + 0.5
    rejected(vm, "kernel: Killed process 77 (pilot-daemon)")


@pytest.mark.parametrize(("rate", "bad"), [(5.0, True), (3.5, True), (2.0, False), (0.0, False)])
def test_one_that_grows(rate: float, bad: bool) -> None:
    vm = watched()
    assert rollout.measured(vm.state, PORTS)[0] == PORTS[0]
    assert len(rollout.measured(vm.state, PORTS)) <= 32
    begin = vm.seen.now
    for _ in range(60):
        grown = rate * MIB * (vm.seen.now - begin) / 60
        vm.seen = replace(vm.seen, private=2 * MIB + grown)
        vm.second()
        if vm.state.state != WATCHING:
            break
    assert (vm.state.state == HALTED) == bad
    if bad:
        assert "grows: " in vm.state.reason
        assert vm.seen.now - begin <= 60


def test_memory_that_is_not_to_be_had_is_no_growth() -> None:
    vm = watched()
    vm.until(NONE)
    assert vm.state.accepted == NEW


def test_an_agent_that_was_ill_before_holds_up_nobody() -> None:
    vm = Vm()
    vm.fails_again(10003)
    vm.ill = frozenset({10003})
    vm.until(ROLLING)
    vm.fails(10003)
    vm.until(NONE)
    assert vm.state.accepted == NEW


def test_a_restart_ordered_meanwhile_is_nobodys_death() -> None:
    vm = watched()
    vm.seen = replace(vm.seen, epoch="another")
    vm.up = dict.fromkeys(PORTS, vm.seen.now)
    vm.until(NONE)
    assert vm.state.accepted == NEW


def test_held_meanwhile() -> None:
    vm = watched()
    vm.seen = replace(vm.seen, held=True, ports=())
    vm.up.clear()
    for _ in range(100):
        vm.second()
    assert (vm.state.state, vm.state.done, vm.state.accepted) == (ROLLING, 50, OLD)
    vm.seen = replace(vm.seen, held=False, ports=PORTS)
    vm.up = dict.fromkeys(PORTS, vm.seen.now)
    vm.until(NONE)
    assert vm.state.accepted == NEW


def test_a_spec_that_goes_back_ends_it() -> None:
    vm = watched()
    vm.seen = replace(vm.seen, target=OLD)
    vm.second()
    assert (vm.state.state, vm.state.accepted, vm.state.rejected) == (NONE, OLD, ())


def test_reasons_to_wait() -> None:
    vm = Vm()
    vm.seen = replace(vm.seen, calm=False)
    vm.second()
    assert (vm.state.state, vm.state.reason) == (WAITING, "waits until no agent is on its way")
    vm.seen = replace(vm.seen, there=frozenset({OLD.sha256}))
    vm.second()
    assert vm.state.reason == "its binary is being fetched"
    vm.seen = replace(vm.seen, lost={NEW.sha256: "gs://b/o: 404"})
    vm.second()
    assert vm.state.reason == "gs://b/o: 404"
    vm.seen = replace(vm.seen, settings=Roll(auto=False, batch=50, watch_seconds=60))
    vm.second()
    assert vm.state.reason == "waits for an order: roll.auto is false"


def test_an_accepted_release_that_is_lost_leaves_no_vm_empty() -> None:
    vm = Vm()
    vm.seen = replace(vm.seen, there=frozenset({NEW.sha256}), lost={OLD.sha256: "404"})
    vm.second()
    # Agents that run are no reason to hurry, whatever they run.
    assert vm.state.accepted == OLD
    vm.on = dict.fromkeys(PORTS, "")
    waits = replace(vm.state, target=NEW, state=WAITING)
    assert advance(waits, replace(vm.seen, on=vm.on, calm=False))[0].accepted == OLD
    vm = Vm()
    vm.on.clear()
    vm.seen = replace(vm.seen, there=frozenset({NEW.sha256}), lost={OLD.sha256: "404"})
    state, _ = advance(replace(vm.state, target=NEW, state=WAITING), vm.seen)
    assert state.accepted == NEW


def test_a_go_starts_one_and_counts_once() -> None:
    vm = Vm()
    vm.seen = replace(vm.seen, settings=Roll(auto=False, batch=50, watch_seconds=60))
    vm.until(WAITING)
    vm.seen = replace(vm.seen, verdict=ReleaseVerdict(sha256=OLD.sha256, verdict=GO))
    vm.second()
    assert vm.state.state == WAITING
    vm.seen = replace(vm.seen, verdict=ReleaseVerdict(sha256=NEW.sha256, verdict=GO))
    vm.until(WATCHING)
    vm.fails_again()
    rejected(vm, "failed")
    # The order is still there: it is not obeyed again and again.
    vm.failures.clear()
    vm.up = dict.fromkeys(PORTS, vm.seen.now)
    vm.seen = replace(vm.seen, verdict=ReleaseVerdict(sha256=NEW.sha256, verdict=GO, id="2"))
    vm.until(NONE)
    assert (vm.state.accepted, vm.state.rejected) == (NEW, ())


def test_a_reject_goes_back() -> None:
    vm = watched()
    vm.seen = replace(vm.seen, verdict=ReleaseVerdict(sha256=NEW.sha256, verdict=REJECT))
    rejected(vm, "rejected by order")


def test_another_release_after_a_rejected_one() -> None:
    vm = watched()
    vm.fails_again()
    vm.until(HALTED)
    vm.failures.clear()
    third = Release(version="3.0", sha256="c" * 64)
    vm.seen = replace(vm.seen, target=third, there=frozenset({OLD.sha256, third.sha256}))
    vm.until(ROLLING)
    assert vm.state.target == third
    assert vm.state.rejected[0].sha256 == NEW.sha256


def test_remember_and_recall(tmp_path: Path) -> None:
    paths = Paths(root=tmp_path)
    paths.node_state.mkdir(parents=True)
    said: list[str] = []
    assert roll_state.recall(paths, said.append) == RollState()
    vm = watched()
    vm.fails_again()
    vm.until(HALTED)
    for state in (vm.state, watched().state):
        state = replace(state, spent=("x/1",))  # noqa: PLW2901
        roll_state.remember(paths, state)
        assert roll_state.recall(paths, said.append) == replace(state, watch=None)
    assert not said
    # One of the two files may come to harm.
    (paths.node_state / "roll.json").write_text('{"accepted": 7}', encoding="utf-8")
    assert roll_state.recall(paths, said.append) == replace(state, watch=None)
    assert "roll.json: " in said[0]
    (paths.node_state / "roll.json").unlink()
    assert roll_state.recall(paths, said.append) == replace(state, watch=None)
    (paths.node_state / "roll.json.old").write_text("", encoding="utf-8")
    assert roll_state.recall(paths, said.append) == RollState()


def test_what_older_versions_write_and_read(tmp_path: Path) -> None:
    """They had `exempt`, without which they read nothing, and `culprits`."""
    paths = Paths(root=tmp_path)
    state = replace(watched().state, watch=None)
    roll_state.remember(paths, state)
    path = paths.node_state / "roll.json"
    written = json.loads(path.read_bytes())
    assert written["exempt"] == []
    path.write_text(json.dumps(written | {"exempt": [10003], "culprits": [10009]}), "utf-8")
    said: list[str] = []
    assert roll_state.recall(paths, said.append) == state
    assert not said


def test_unknown_fields_of_a_newer_program_are_ignored_in_the_record(tmp_path: Path) -> None:
    paths = Paths(root=tmp_path)
    vm = watched()
    vm.fails_again()
    vm.until(HALTED)
    state = replace(vm.state, watch=None)
    assert state.rejected
    roll_state.remember(paths, state)
    path = paths.node_state / "roll.json"
    newer = json.loads(path.read_bytes()) | {"canary": ["swarm-1"]}
    for each in (*newer["rejected"], newer["accepted"], newer["target"]):
        each["by"] = "somebody"
    said: list[str] = []
    path.write_text(json.dumps(newer), encoding="utf-8")
    assert roll_state.recall(paths, said.append) == state
    assert not said
    # What must not be passed over is refused by name, not forgotten with what is rejected.
    for changes, name in (
        ({"requires": ["canary"]}, "canary"),
        ({"state": "paced"}, "state paced"),
    ):
        path.write_text(json.dumps(newer | changes), encoding="utf-8")
        with pytest.raises(FinalError, match=f"{name} must not be ignored"):
            roll_state.recall(paths, said.append)


def test_an_unreadable_record_is_read_from_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = Paths(root=tmp_path)
    state = RollState(accepted=OLD, target=OLD)
    roll_state.remember(paths, state)
    rotten = {"roll.json"}
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name in rotten:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    said: list[str] = []
    assert roll_state.recall(paths, said.append) == state
    assert "Input/output error" in said[0]
    # Not known is not the same as nothing.
    (paths.node_state / "roll.json.old").unlink()
    with pytest.raises(OSError, match=r"roll\.json"):
        roll_state.recall(paths, said.append)
    rotten.add("roll.json.old")
    with pytest.raises(OSError, match=r"roll\.json"):
        roll_state.recall(paths, said.append)


def test_without_a_record_the_running_release_is_accepted() -> None:
    vm = Vm()
    state, said = advance(RollState(), replace(vm.seen, on=dict.fromkeys(PORTS, OLD.sha256)))
    assert state.accepted is not None
    assert (state.accepted.sha256, state.target, state.done) == (OLD.sha256, NEW, 50)
    assert "most agents run it" in said[0]


def test_one_that_is_always_on_its_way_holds_up_no_roll_for_ever() -> None:
    vm = Vm()
    vm.ill = frozenset({10003, 10120})
    for port in vm.ill:
        del vm.up[port]
    vm.seen = replace(vm.seen, calm=False)
    for _ in range(600):
        vm.second()
    assert vm.state.state == WAITING
    vm.until(ROLLING)
    # Their time to come up is over, twice.
    vm.fails_again(*vm.ill)
    vm.until(NONE)
    assert vm.state.accepted == NEW


def test_while_most_are_on_their_way_it_waits() -> None:
    vm = Vm()
    vm.up.clear()
    vm.seen = replace(vm.seen, calm=False)
    for _ in range(700):
        vm.second()
    assert vm.state.state == WAITING
