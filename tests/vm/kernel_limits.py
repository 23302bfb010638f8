"""The PID limits, as rounds on booted VMs: agents by hand hit a limit of tasks, ours hit none."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

from tests.vm.fleet import RENDEZVOUS, Fleet, Measured

# Eight tasks each at least, as Go makes them on eight processors (on two it makes seven): more than
# 15 % of what a kernel with 614 MiB allows, 668. Each costs an emulated processor seconds.
CROWD = 88
# Their memory has to fit beside, so the control has its huge pages as our VMs have them: with
# Debian's own setting 150 agents fill a GiB, and no limit of tasks is reached.
CROWDED = {"GOGC": "25", "GOMAXPROCS": "8"}
SMALL_GUEST = "f1-micro"
BY_HAND = "by-hand"
# A started agent is frozen, by hand and in a unit alike: its tasks still count, and so many running
# agents would keep an emulated processor busy for too long. In a unit its cgroup is frozen, which
# pilot-node does not notice. Each once: asking all of them every second costs too much.
SLICE = "/sys/fs/cgroup/pilot.slice"
FREEZE = f"""
declare -A cold
while sleep 1; do
  for group in {SLICE}/*/pilot-agent-*; do
    port=${{group##*@}} port=${{port%.service}}
    [ -z "${{cold[$port]}}" ] && [ -S "/var/lib/pilot/agents/$port/daemon.sock" ] &&
      echo 1 >"$group/cgroup.freeze" && cold[$port]=1
  done
done
"""


def pid_walls(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The control: agents spawned by a VM's own startup script with nohup, as upstream's were, hit
    the limit of that unit's tasks. The same number under our units, on the same VM, hits none.

    The registry counts all of them for half an hour more, and `vm` is stopped: the last row of a
    fleet.
    """
    spec = fleet.declared(vm)
    # Its agents take a third of a processor that emulates them.
    fleet.act(vm, "stop")
    crowd = {
        "name": BY_HAND,
        "agents": CROWD,
        # A few at a time: two emulated processors start no more before they are too late.
        "window": 4,
        "environment": spec["environment"] | CROWDED,
        "memory": spec["memory"] | {"reserveMb": 192},
    }
    with _by_hand(fleet, vm, CROWD, SMALL_GUEST, CROWDED) as control:
        fleet.run(BY_HAND, "pkill -KILL -x pilot-daemon")
        # From now on a VM like any other: its own script is gone, and the project's runs.
        items = fleet.metadata(vm) | {"pilot-spec": json.dumps(spec | crowd)}
        fleet.set_metadata(BY_HAND, items)
        unit = "systemd-run --quiet --collect --unit="
        # As a file: in a command of its own systemd replaces each `${…}`.
        fleet.run(BY_HAND, f"echo {shlex.quote(FREEZE)} >/run/freeze")
        fleet.run(BY_HAND, f"{unit}freeze bash /run/freeze")
        fleet.run(BY_HAND, f"{unit}script --wait google_metadata_script_runner startup")
        for count in range(10, CROWD, 10):
            fleet.until_status(
                BY_HAND,
                lambda told, count=count: told["agents"]["running"] >= count,  # type: ignore[misc]
                f"{count} agents run",
            )
        fleet.until_status(BY_HAND, lambda told: told["phase"] == "whole", "whole")
        # Agents that are not frozen would load the emulated processor, and spoil the comparison.
        fleet.until_there(
            BY_HAND,
            f"[ $(cat {SLICE}/*/*/cgroup.freeze | grep -c 1) -ge {CROWD * 9 // 10} ]",
            f"nine tenths of {CROWD} stand still",
        )
        ours = _none_hit(fleet, BY_HAND, CROWD, control)
        # At once: a shutdown would wait for frozen agents, which get no SIGTERM.
        fleet.run(BY_HAND, "(sleep 1; echo o >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    return control | ours


def pid_walls_of_a_container(fleet: Fleet, vm: str, chance: Random) -> Measured:
    """The same where thousands fit: the VM's own agents are the ones under our units."""
    fleet.whole(vm)
    wanted = fleet.wanted[vm]
    environment = fleet.declared(vm)["environment"]
    with _by_hand(fleet, vm, wanted, fleet.machine, environment) as control:
        fleet.run(BY_HAND, "pkill -KILL -x pilot-daemon || true")
    ours = _none_hit(fleet, vm, wanted, control)
    _forgotten(fleet, chance)
    fleet.whole(vm)
    return control | ours


@contextmanager
def _by_hand(
    fleet: Fleet, vm: str, count: int, machine: str, environment: dict[str, str]
) -> Iterator[Measured]:
    """A VM beside `vm` whose script spawns `count` agents, until it has ended; it has to hit."""
    spec = fleet.declared(vm)
    items = fleet.metadata(vm)
    items["pilot-spec"] = json.dumps(spec | {"name": BY_HAND})
    items["startup-script"] = SPAWN.format(
        bucket=spec["bucket"],
        storage=spec["endpoints"]["storage"],
        object=spec["release"]["daemon"]["object"].replace("/", "%2F"),
        count=count,
        environment="\n".join(
            f"export {name}={shlex.quote(value)}" for name, value in environment.items()
        ),
        registry=spec["registry"],
        beacon=spec["beacon"],
    )
    unit = "google-startup-scripts.service"
    with fleet.beside(vm, BY_HAND, items, machine):
        # At the limit the script cannot even begin another process: it ends, its agents do not.
        while not fleet.ended(BY_HAND):
            spawned = fleet.console(BY_HAND).count("spawned")
            fleet.until(
                lambda spawned=spawned: (  # type: ignore[misc]
                    bool(fleet.ended(BY_HAND)) or fleet.console(BY_HAND).count("spawned") > spawned
                ),
                f"the script ends, or more than {spawned * 10} agents",
            )
        most = int(fleet.run(BY_HAND, f"systemctl show -P TasksMax {unit}"))
        events = f"/sys/fs/cgroup/system.slice/{unit}/pids.events"
        hits = int(fleet.run(BY_HAND, f"sed -n 's/^max //p' {events}"))
        spawned = fleet.running(BY_HAND)
        errors = fleet.run(BY_HAND, "tail -n 3 /srv/errors")
        assert hits > 0, f"{spawned} agents did not hit the control's limit of {most}: {errors}"
        yield {"control_tasks_max": most, "control_spawned": spawned, "control_hits": hits}


def _none_hit(fleet: Fleet, vm: str, count: int, control: Measured) -> Measured:
    """So many agents under our units have more tasks than the control's limit, and hit no limit."""
    told = fleet.status(vm)
    assert told is not None
    assert fleet.running(vm) == count
    tasks = int(fleet.run(vm, f"cat {SLICE}/pids.current"))
    most = fleet.run(vm, f"cat {SLICE}/pids.max")
    # A start that an emulated processor was too slow for is no limit, and was made again.
    signs = "'\\[hit |\\[no limit is full|temporarily unavailable'"
    hits = fleet.run(vm, f"journalctl -u pilot-node -o cat | grep -E {signs} || true")
    assert most == "max"
    limit = int(control["control_tasks_max"])
    assert tasks > limit, f"{tasks} tasks are no more than the control's limit of {limit}"
    assert hits == ""
    return {"agents": count, "our_tasks": tasks, "our_failed_starts": told["totals"]["failures"]}


def _forgotten(fleet: Fleet, chance: Random) -> None:
    """Make the registry forget dead agents, which it would count for half an hour."""
    fleet.order(RENDEZVOUS, restart=f"walls-{chance.randrange(1 << 30)}", clean=True)
    fleet.all_online()
    fleet.order(RENDEZVOUS)


# One after the other; each stopped when its socket is there.
SPAWN = """#!/bin/bash
cd /srv || exit
echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
{environment}
# Waiting without a process of its own for it.
exec 9<> <(:)
curl -sS -H 'Authorization: Bearer x' '{storage}/storage/v1/b/{bucket}/o/{object}?alt=media' \\
  -o pilot-daemon && chmod +x pilot-daemon
mkdir -p a/{{1..{count}}}
for i in $(seq {count}); do
  HOME=/srv/a/$i nohup /srv/pilot-daemon -registry {registry} -beacon {beacon} \\
    -listen ":$((20000 + i))" -socket "/srv/a/$i/s" -identity "/srv/a/$i/id.json" \\
    -email "by-hand-$i@by-hand.invalid" -telemetry-url '' -motd-feed-url '' -no-skillinject \\
    >/dev/null 2>>/srv/errors &
  until [ -S "a/$i/s" ]; do
    kill -0 $! 2>/dev/null || break 2
    read -rt 0.1 -u 9
  done
  kill -STOP $!
  if ((i % 10 == 0)); then echo spawned; fi
done
"""
