"""The drain at a power-off."""

from __future__ import annotations

import heapq
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from ..machine.agent_units import processes, processes_of
from ..machine.paths import Paths
from .supervisor import TICK

# Seconds that a power-off waits for the drain (docs/CONTRACT.md): thousands of agents end in less,
# and Compute Engine gives a VM 90 s and more.
SHUTDOWN_SECONDS = 60.0
# Part of that in which all agents get SIGTERM. The last ones need the rest to end.
_SIGNALLED = 0.8
# Seconds after SIGTERM until an agent that still runs keeps no place in the window: a daemon ends
# in less than one.
_DEAF = 5.0
# Seconds between two looks at all agents: of 5,000 one takes 0.1 s of CPU.
_LISTED = 1.0


def drain_for_shutdown(
    paths: Paths,
    *,
    limit: int,
    say: Callable[[str], None],
    seconds: float = SHUTDOWN_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    kill: Callable[[int, int], None] = os.kill,
) -> int:
    """End the agents, `limit` at a time, while the system goes down; how many are left.

    By SIGTERM to their processes: systemd's own stop jobs are queued and wait for pilot-node to end
    (Before= in their unit), so a `systemctl stop` would wait for itself. Where `limit` is too slow,
    more are ended at a time. After `seconds` the rest is left to systemd.
    """
    begun = listed = clock()
    left = processes(paths)
    total = len(left)
    # When each agent got SIGTERM that is not known to have ended.
    signalled: dict[int, float] = {}
    if left:
        say(f"the system goes down: ending {total} agents, {limit} at a time")
    while left and (now := clock()) - begun < seconds:
        if now - listed >= _LISTED:
            listed, left = now, processes(paths)
            signalled = {port: since for port, since in signalled.items() if port in left}
        # An agent that ignores SIGTERM keeps no place. The next list shows whether it has ended.
        held = [port for port, since in signalled.items() if now - since < _DEAF]
        for port in held:
            if not processes_of(paths, port):
                del left[port], signalled[port]
        behind = total * (now - begun) / (seconds * _SIGNALLED) - (
            total - len(left) + len(signalled)
        )
        room = max(limit - sum(port in signalled for port in held), math.ceil(behind))
        for port in heapq.nsmallest(max(0, room), left.keys() - signalled.keys()):
            signalled[port] = now
            # Looked up again: a listed process may have ended, and its PID be another's.
            for process in processes_of(paths, port):
                with suppress(ProcessLookupError):
                    kill(process, signal.SIGTERM)
        sleep(TICK)
    left = processes(paths)
    if total:
        say(f"{total - len(left)} of {total} agents ended in {clock() - begun:.1f} s")
    return len(left)
