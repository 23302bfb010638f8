"""The drain at a power-off."""

from __future__ import annotations

import heapq
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from ..machine.cgroup import processes, processes_of
from ..machine.paths import Paths
from .supervisor import TICK

# Seconds that a power-off waits for the agents to have been drained (docs/CONTRACT.md): thousands
# end in less, and Compute Engine gives a VM 90 s and more.
SHUTDOWN_SECONDS = 60.0
# Share of that in which all are told; the rest is for the last of them to end.
_TOLD = 0.8
# Seconds after which one that was told and still runs holds up nobody: a daemon ends in less than
# one.
_DEAF = 5.0
# Seconds between two looks at all of them: of 5,000 one takes 0.1 s of the processor.
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

    By SIGTERM to their processes: systemd's own jobs for them are queued already and wait for
    pilot-node to end (Before= in their unit), so a `systemctl stop` would wait for itself. Where
    `limit` is too slow for all to be told in good time, more are told at a time. After `seconds`
    the rest is left to systemd.
    """
    begun = listed = clock()
    left = processes(paths)
    total = len(left)
    # When each was told that is not known to have ended.
    told: dict[int, float] = {}
    if left:
        say(f"the system goes down: ending {total} agents, {limit} at a time")
    while left and (now := clock()) - begun < seconds:
        if now - listed >= _LISTED:
            listed, left = now, processes(paths)
            told = {port: since for port, since in told.items() if port in left}
        # Whoever ignores it keeps no place, and is seen to have ended by the next list.
        held = [port for port, since in told.items() if now - since < _DEAF]
        for port in held:
            if not processes_of(paths, port):
                del left[port], told[port]
        behind = total * (now - begun) / (seconds * _TOLD) - (total - len(left) + len(told))
        room = max(limit - sum(port in told for port in held), math.ceil(behind))
        for port in heapq.nsmallest(max(0, room), left.keys() - told.keys()):
            told[port] = now
            # Asked anew: what was listed may have ended, and its number be another's.
            for process in processes_of(paths, port):
                with suppress(ProcessLookupError):
                    kill(process, signal.SIGTERM)
        sleep(TICK)
    left = processes(paths)
    if total:
        say(f"{total - len(left)} of {total} agents ended in {clock() - begun:.1f} s")
    return len(left)
