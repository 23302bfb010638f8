"""Orders to some VMs: `drain`, `undrain`, `pause`, `unpause`, and the objects that hold them."""

from __future__ import annotations

import json
import os
import signal
from functools import partial

import pytest

from lab.cloud.web import Request, Response
from ops import run
from ops.errors import (
    MissingError,
    OpsError,
)
from ops.orders import Order, changed
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.runners import SWARM, runner
from tests.ops.simulated import (
    BUCKET,
    Simulated,
    rolling,
)


def test_a_vm_that_is_gone_ends_the_wait(simulated: Simulated) -> None:
    def lose(_: float) -> None:
        simulated.client.do("DELETE", f"{ZONE}/instances/swarm-1")

    driver = runner(simulated, [], pause=lose)
    with pytest.raises(MissingError, match="swarm-1 is no VM of fleet"):
        driver.give_and_wait(["swarm-1"], {"hold": True}, lambda seen: seen.is_empty, "drain")


def test_orders_of_two_operators_both_count(simulated: Simulated) -> None:
    orders = runner(simulated, []).orders
    read = orders.read

    def meanwhile(vm: str) -> Order:
        found = read(vm)
        if not found.generation:
            other.give(vm, {"hold": True})
        return found

    other = runner(simulated, []).orders
    object.__setattr__(orders, "read", meanwhile)
    orders.give("swarm-1", {"benchmarks": "pause"})
    order = simulated.order("swarm-1")
    assert (order["hold"], order["benchmarks"], order["by"]) == (True, "pause", "tester")
    simulated.tick()
    assert simulated.nodes["swarm-1"].holds, "pilot-node reads what ops writes"


def test_an_unchanged_order_is_not_written() -> None:
    before = Order(content={"schema": 1, "hold": True, "by": "a", "at": "b"}, generation=3)
    assert changed(before, {"hold": True}, by="c") is None
    assert changed(before, {"banner": None}, by="c") is None
    after = json.loads(changed(before, {"hold": None, "banner": "x"}, by="c") or b"")
    assert (after.get("hold"), after["banner"], after["by"], after["schema"]) == (None, "x", "c", 1)


def test_a_malformed_order_is_left_alone(simulated: Simulated) -> None:
    orders = runner(simulated, []).orders
    simulated.client.upload(BUCKET, "orders/swarm-1.json", b"hold!")
    with pytest.raises(OpsError, match=r"no order of schema 1.*deleted order also ends a hold"):
        orders.give("swarm-1", {"hold": True})


@pytest.mark.usefixtures("ticking")
def test_a_drain_makes_progress_agent_by_agent(ops: Ops, simulated: Simulated) -> None:
    for command in ("drain", "undrain"):
        done = ops(command, "swarm-2", "--limit", "2")
        assert done.code == 0, done


@pytest.mark.usefixtures("ticking")
def test_no_order_ends_a_hold_on_the_vm_itself(ops: Ops, simulated: Simulated) -> None:
    simulated.nodes["swarm-1"].held_here = True
    simulated.tick()
    found = ops("undrain", "swarm-1")
    assert (found.code, "`sudo pilot-node undrain` on it" in found.err) == (1, True)
    assert ops("drain", "swarm-3").code == 0
    unpaused = ops("unpause")
    assert unpaused.code == 0
    assert "swarm-1 is still held, on the VM itself" in unpaused.out
    assert "swarm-3 is still drained: `ops undrain swarm-3` ends that" in unpaused.out
    assert "swarm-2 is still" not in unpaused.out


def test_an_interrupted_command_says_what_stands(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "Runner", partial(run.Runner, pause=pause))
    found = ops("drain", "swarm-1")
    assert (found.code, "`ops undrain swarm-1` ends it" in found.err) == (130, True)
    assert simulated.order("swarm-1")["hold"]
    found = ops("reboot", "--yes", "swarm-3")
    assert (found.code, "a VM that was shut down stays off" in found.err) == (130, True)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("undrain swarm-1", "The order stands: the agents start without this command"),
        ("pause", "The order stands: `ops unpause` ends it"),
        ("unpause", "The order stands: `ops pause` ends it"),
        ("roll go", "swarm-1 rolls on. The VMs after it wait for another `ops roll go`"),
        ("roll reject", "The order stands: the VMs go back without this command"),
        ("roll --follow", "Nothing was ordered: what rolls goes on"),
    ],
)
def test_every_wait_that_is_interrupted_says_what_goes_on(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch, command: str, says: str
) -> None:
    def pause(_: float) -> None:
        raise KeyboardInterrupt

    # Nobody is done at once.
    simulated.nodes["swarm-1"].running = 0
    simulated.nodes["swarm-1"].roll = rolling(state="waiting", of=120)
    order = {"schema": 1, "hold": True} | ({"benchmarks": "pause"} if command == "unpause" else {})
    for name in SWARM:
        simulated.client.upload(BUCKET, f"orders/{name}.json", json.dumps(order).encode())
    simulated.tick()
    monkeypatch.setattr(run, "Runner", partial(run.Runner, pause=pause))
    found = ops(*command.split())
    assert (found.code, found.err.strip()) == (130, f"interrupted. {says}")


def test_an_ignored_signal_stays_ignored(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under nohup."""

    def pause(_: float) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        simulated.tick()

    monkeypatch.setattr(run, "Runner", partial(run.Runner, pause=pause))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ops("pause").code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_drain_and_undrain(ops: Ops, simulated: Simulated) -> None:
    with simulated.running():
        assert ops("drain", "swarm-1", "swarm-3").code == 0
        assert simulated.nodes["swarm-1"].running == simulated.nodes["swarm-3"].running == 0
        text = ops("status").out
        assert "held by an order" in text
        assert ops("undrain", "swarm-1", "swarm-3").code == 0
        assert ops("drain", "swarm-7").code == 3
    assert simulated.nodes["swarm-1"].running == 120


@pytest.mark.parametrize("word", ["unpause", "resume"])
def test_unpause_and_its_old_word_end_a_pause(ops: Ops, simulated: Simulated, word: str) -> None:
    with simulated.running():
        assert ops("pause").code == 0
        assert all(simulated.nodes[name].pausing for name in SWARM)
        assert ops(word).code == 0
    assert not any(simulated.nodes[name].pausing for name in SWARM)
    late = ops("pause", "--limit", "1")
    assert (late.code, "The order stands" in late.err) == (4, True)


def test_without_the_right_to_order_the_missing_right_is_named(
    ops: Ops, simulated: Simulated
) -> None:
    answer = simulated.serving.lab.answer
    message = "x@y does not have storage.objects.create access to the Google Cloud Storage object."

    def refuse(request: Request) -> Response:
        if request.path.startswith("/upload/"):
            return Response(body={"error": {"code": 403, "message": message}}, status=403)
        return answer(request)

    simulated.serving.lab.answer = refuse  # type: ignore[method-assign]
    for command in (["restart", "--yes"], ["reboot", "--yes"], ["pause"], ["drain", "swarm-1"]):
        found = ops(*command)
        assert found.code == 3, command
        assert "storage.objects.create is missing; it is in roles/storage.objectUser" in found.err
    assert ops("status").code == 0
