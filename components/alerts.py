"""What is watched of a fleet: the alerts, and the panels of its dashboard, as data.

Every metric is one of docs/CONTRACT.md, "Metrics". components/monitoring.py makes them in Cloud
Monitoring; prometheus_rules.yml holds the same for people who do not use it, and
tests/components/monitoring compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# Below this fraction of available memory pilot-node freezes benchmarks (docs/RUNBOOK.md).
AVAILABLE = 0.20
# A failing agent in a hundred: fewer are started again by themselves, and `ops status` shows them.
FAILED = 0.01
# A file system that is nine tenths full: with less than a tenth left there is time to grow it.
DISK_FREE = 0.10
# A good copy of the registry's store is minutes old while it is served.
COPY_SECONDS = 6 * 3600

GREATER, LESS = "COMPARISON_GT", "COMPARISON_LT"


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric of pilot-node, some of its labels given."""

    metric: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def filter(self) -> str:
        """The filter of Cloud Monitoring that selects it: all that alerts are on are gauges."""
        return " AND ".join(
            [
                f'metric.type="prometheus.googleapis.com/{self.metric}/gauge"',
                'resource.type="prometheus_target"',
                *(f'metric.labels.{key}="{value}"' for key, value in self.labels.items()),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert: `series` (divided by `over`) compared with `value` for `minutes`, by VM.

    `value` is None where the alert is that `series` is absent. `machine` adds the case that the
    machine itself is silent, which Google sees without any agent on it.
    """

    name: str
    summary: str
    advice: str
    severity: str
    minutes: int
    series: Series
    over: Series | None = None
    comparison: str = GREATER
    value: float | None = None
    machine: bool = False


def alerts(*, agents: int, online: float) -> tuple[Alert, ...]:
    """The fleet's alerts. `agents` is how many there should be, `online` a fraction of them."""
    wanted = Series(metric="pilot_agents", labels={"state": "wanted"})
    return (
        Alert(
            name="FleetOnlineLow",
            summary="Fewer agents are online than should be",
            advice="`ops status` names the VM that misses some. The registry goes on counting the "
            "dead until its stale threshold, so this comes late: see VmSilent and AgentsMissing.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_registry_online"),
            comparison=LESS,
            value=float(math.ceil(agents * online)),
        ),
        Alert(
            name="RegistryDown",
            summary="The registry does not answer on its VM",
            advice="Agents stay up and come back by themselves. `ops logs` of the rendezvous says "
            "why it does not start; a bad store is set aside and replaced by the newest good copy.",
            severity="page",
            minutes=3,
            series=Series(metric="pilot_registry_up"),
            comparison=LESS,
            value=1,
        ),
        Alert(
            name="VmSilent",
            summary="A VM says nothing",
            advice="`ops status` says whether the VM runs, `ops logs VM` what its serial console "
            "said last. A VM with a startup script of its own is silent too: `ops audit`.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_node_start_time_seconds"),
            machine=True,
        ),
        Alert(
            name="AgentsMissing",
            summary="A VM runs fewer agents than it wants",
            advice="After a reboot that is so for some minutes. Else `ops status`: the window says "
            "why it is small, and the limit that was hit is in the last error.",
            severity="page",
            minutes=15,
            series=Series(metric="pilot_agents", labels={"state": "running"}),
            over=wanted,
            comparison=LESS,
            value=online,
        ),
        Alert(
            name="AgentsFailed",
            summary="More than one agent in a hundred keeps failing on a VM",
            advice="`ops status` shows why the first one fails. They are tried again by "
            "themselves, later each time.",
            severity="ticket",
            minutes=10,
            series=Series(metric="pilot_agents", labels={"state": "failed"}),
            over=wanted,
            value=FAILED,
        ),
        Alert(
            name="MemoryLow",
            summary="A VM has less than a fifth of its memory available",
            advice="Benchmarks are frozen by now. `ops top VM` names the agents that use most; if "
            "they are all alike, the VM has too many: lower its `agents`.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_memory_available_bytes"),
            over=Series(metric="pilot_memory_total_bytes"),
            comparison=LESS,
            value=AVAILABLE,
        ),
        Alert(
            name="DiskFull",
            summary="A VM's state disk is nine tenths full",
            advice="Raise `diskGb` in the stack file: the disk and its file system grow while the "
            "VM runs. `ops status --json` has its size and what is free; if its file system is "
            "smaller than the disk, `last_error` says why it did not grow.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_disk_free_bytes"),
            over=Series(metric="pilot_disk_size_bytes"),
            comparison=LESS,
            value=DISK_FREE,
        ),
        Alert(
            name="MemoryLeak",
            summary="Agents grow without more connections",
            advice="`ops status` has the sentence, `ops top VM` the agents. A release that leaks "
            "is sent back with `ops roll reject` while it rolls, later in the stack file; until "
            "then `ops drain VM` and `ops undrain VM` help.",
            severity="ticket",
            minutes=10,
            series=Series(metric="pilot_memory_leak"),
            value=0,
        ),
        Alert(
            name="RollHalted",
            summary="A release was halted and taken back",
            advice="The reason is in `ops status`. The rejected release stays rejected; `ops roll "
            "go` tries it again, `ops roll reject` goes on without.",
            severity="ticket",
            minutes=1,
            series=Series(metric="pilot_roll_state", labels={"state": "halted"}),
            value=0,
        ),
        Alert(
            name="GhostScript",
            summary="A VM runs what nobody declared",
            advice="A key of its metadata or of the project's does that. With a startup script at "
            "the VM the fleet's own does not run at its next boot. `ops audit` names the key; `"
            "gcloud compute instances remove-metadata` removes it, or `gcloud compute project-info "
            "remove-metadata`. Who put it there?",
            severity="page",
            minutes=1,
            series=Series(metric="pilot_ghosts"),
            value=0,
        ),
        Alert(
            name="ScriptFailed",
            summary="A VM's new startup script failed",
            advice="Its agents run on, the VM is half way. `ops logs VM` says which step failed. "
            "`make up` from the commit before ends it for the VMs that have not had their turn, "
            "and mends this one (docs/UPGRADE.md).",
            severity="page",
            minutes=0,
            series=Series(metric="pilot_script_failed"),
            value=0,
        ),
        Alert(
            name="SpecNotRead",
            summary="A VM cannot read what it should be",
            advice="It stays at its last good spec. `ops status` has the error: an unreachable "
            "metadata server, or a spec that this version of pilot-node does not understand.",
            severity="ticket",
            minutes=15,
            series=Series(metric="pilot_spec_current"),
            comparison=LESS,
            value=1,
        ),
        Alert(
            name="OrdersNotRead",
            summary="A VM cannot read its orders",
            advice="It keeps the last good ones. Unreachable: the bucket, or the account's right "
            "to read it. Malformed: `ops` writes what is understood, so who else wrote there?",
            severity="ticket",
            minutes=15,
            series=Series(metric="pilot_orders_current"),
            comparison=LESS,
            value=1,
        ),
        Alert(
            name="CopiesOld",
            summary="The newest good copy of the registry's store is hours old",
            advice="Until there is one, losing the store loses what was registered since. The last "
            "error in the rendezvous' status says why none is taken: a full disk, or a bad store.",
            severity="ticket",
            minutes=10,
            series=Series(metric="pilot_registry_copy_age_seconds"),
            value=COPY_SECONDS,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of the dashboard: PromQL by legend, and the unit as UCUM has it."""

    title: str
    unit: str
    queries: Mapping[str, str]


def _by_vm(metric: str) -> dict[str, str]:
    return {"{{vm}}": f"sum by (vm) ({metric})"}


PANELS = (
    Panel(
        title="Agents",
        unit="1",
        queries={
            "wanted": 'sum(pilot_agents{state="wanted"})',
            "running": 'sum(pilot_agents{state="running"})',
            "online (registry)": "sum(pilot_registry_online)",
        },
    ),
    Panel(
        title="Agents missing",
        unit="1",
        queries={
            "{{vm}}": 'sum by (vm) (pilot_agents{state="wanted"})'
            ' - sum by (vm) (pilot_agents{state="running"})'
        },
    ),
    Panel(title="Agents failed", unit="1", queries=_by_vm('pilot_agents{state="failed"}')),
    Panel(
        title="Starts, stops and failures a second",
        unit="1/s",
        queries={
            "starts": "sum(rate(pilot_agent_starts_total[5m]))",
            "stops": "sum(rate(pilot_agent_stops_total[5m]))",
            "failures": "sum(rate(pilot_agent_failures_total[5m]))",
        },
    ),
    Panel(
        title="Window: starts in flight that are allowed",
        unit="1",
        queries=_by_vm("pilot_window_size"),
    ),
    Panel(
        title="Memory available",
        unit="10^2.%",
        queries={
            "{{vm}}": "sum by (vm) (pilot_memory_available_bytes)"
            " / sum by (vm) (pilot_memory_total_bytes)"
        },
    ),
    Panel(title="Memory of all agents", unit="By", queries=_by_vm("pilot_memory_slice_bytes")),
    Panel(title="Memory of an agent", unit="By", queries=_by_vm("pilot_agent_memory_mean_bytes")),
    Panel(
        title="Growth of the agents an hour",
        unit="By",
        queries=_by_vm("pilot_memory_growth_bytes_per_hour"),
    ),
    Panel(title="Agents above their limit", unit="1", queries=_by_vm("pilot_agents_over_limit")),
    Panel(
        title="Connections of an agent", unit="1", queries=_by_vm("pilot_agent_connections_mean")
    ),
    Panel(title="UDP sockets", unit="1", queries=_by_vm("pilot_udp_sockets")),
    Panel(
        title="VMs by release",
        unit="1",
        queries={"{{version}}": "count by (version) (pilot_release_info)"},
    ),
    Panel(
        title="VMs by state of the roll",
        unit="1",
        queries={"{{state}}": "sum by (state) (pilot_roll_state)"},
    ),
    Panel(
        title="VMs that are held, or have benchmarks stopped",
        unit="1",
        queries={"held": "sum(pilot_held)", "benchmarks stopped": "sum(pilot_bench_frozen)"},
    ),
    Panel(
        title="VMs with something wrong",
        unit="1",
        queries={
            "spec": "sum(1 - pilot_spec_current)",
            "script": "sum(1 - pilot_script_current)",
            "script waits for its turn": "sum(pilot_script_waiting)",
            "script failed": "sum(pilot_script_failed)",
            "orders": "sum(1 - pilot_orders_current)",
            "ghost scripts": "sum(pilot_ghosts)",
            "leak": "sum(pilot_memory_leak)",
        },
    ),
    Panel(
        title="Registry: nodes",
        unit="1",
        queries={
            "online": "sum(pilot_registry_online)",
            "all": "sum(pilot_registry_total)",
            "up": "sum(pilot_registry_up)",
        },
    ),
    Panel(
        title="Registry: age of its store and of its newest good copy",
        unit="s",
        queries={
            "store": "max(pilot_registry_store_age_seconds)",
            "copy": "max(pilot_registry_copy_age_seconds)",
        },
    ),
    Panel(
        title="State disk used",
        unit="10^2.%",
        queries={
            "{{vm}}": "1 - sum by (vm) (pilot_disk_free_bytes)"
            " / sum by (vm) (pilot_disk_size_bytes)"
        },
    ),
)
