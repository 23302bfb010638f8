"""The one loop that all threads have."""

from __future__ import annotations

import threading

from startup.node.machine.thread_loop import ThreadLoop


def test_again_ends_a_pause_and_end_ends_all() -> None:
    steps = threading.Semaphore(0)

    def step() -> None:
        steps.release()

    loop = ThreadLoop("test", step)
    # One that was never started has ended.
    loop.join()
    loop.start()
    assert steps.acquire(timeout=20)
    loop.again()
    assert steps.acquire(timeout=20)
    loop.end()
    loop.join(20)
    assert not loop._thread.is_alive()
    loop.again()
    assert not steps.acquire(blocking=False)


def test_what_comes_during_a_step_gets_another_one() -> None:
    entered, leave = threading.Semaphore(0), threading.Semaphore(0)

    def step() -> None:
        entered.release()
        assert leave.acquire(timeout=20)

    loop = ThreadLoop("test", step)
    loop.start()
    assert entered.acquire(timeout=20)
    loop.again()
    leave.release()
    assert entered.acquire(timeout=20)
    # Told to end in the middle of a step, it begins no other, whatever comes.
    loop.end()
    loop.again()
    leave.release()
    loop.join(20)
    assert not entered.acquire(blocking=False)


def test_the_pause_is_the_steps() -> None:
    steps = threading.Semaphore(0)

    def step() -> float:
        steps.release()
        return 0.001

    loop = ThreadLoop("test", step)
    loop.start()
    for _ in range(3):
        assert steps.acquire(timeout=20)
    loop.end()
    loop.join(20)
