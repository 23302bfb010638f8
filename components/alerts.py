"""The fleet's alerts and the panels of its dashboard, as data.

docs/CONTRACT.md, "Metrics", lists the metrics. components/monitoring.py declares alerts and
dashboard in Cloud Monitoring. prometheus_rules.yml and grafana_dashboard.json hold the same for
Prometheus and Grafana; tests/components/monitoring compares them. The rule AgentsGrow alone has no
counterpart here: a threshold cannot ask for a slope.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

# Below this fraction of available memory pilot-node freezes benchmarks (docs/RUNBOOK.md).
MIN_MEMORY_AVAILABLE = 0.20
# Fraction of a VM's agents. Fewer failures need nobody: failed agents are retried by themselves.
MAX_AGENTS_FAILED = 0.01
# Fraction of the state disk. With a tenth left there is still time to grow it.
MIN_DISK_FREE = 0.10
# While the registry runs, its newest good copy is minutes old.
MAX_COPY_AGE_SECONDS = 6 * 3600

GREATER, LESS = "COMPARISON_GT", "COMPARISON_LT"


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric of pilot-node, narrowed to some labels."""

    metric: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def filter(self) -> str:
        """Cloud Monitoring's filter for it. Every metric with an alert is a gauge."""
        return " AND ".join(
            [
                f'metric.type="prometheus.googleapis.com/{self.metric}/gauge"',
                'resource.type="prometheus_target"',
                *(f'metric.labels.{key}="{value}"' for key, value in self.labels.items()),
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Fires where `series` (divided by `divisor`) passes `threshold` for `minutes`, per VM."""

    name: str
    summary: str
    advice: str
    # "page" or "ticket".
    severity: str
    minutes: int
    series: Series
    divisor: Series | None = None
    comparison: str = GREATER
    # None: the alert fires where `series` is absent.
    threshold: float | None = None
    # Also fires where Google sees no uptime of the VM, for which it needs no agent on it.
    also_vm_down: bool = False


def alerts(*, agents: int, online: float) -> tuple[Alert, ...]:
    """The fleet's alerts. `online`: the least fraction of `agents` that must be online."""
    wanted = Series(metric="pilot_agents", labels={"state": "wanted"})
    return (
        Alert(
            name="FleetOnlineLow",
            summary="Fewer agents are online than should be",
            advice="`ops status` names the VM with missing agents. This alert comes late, because "
            "the registry counts dead agents until its stale threshold: see VmSilent and "
            "AgentsMissing.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_registry_online"),
            comparison=LESS,
            threshold=float(math.ceil(agents * online)),
        ),
        Alert(
            name="RegistryDown",
            summary="The registry does not answer on its VM",
            advice="Agents keep running and reconnect by themselves. `ops logs` of the rendezvous "
            "says why it does not start. A bad store is set aside and replaced by the newest good "
            "copy.",
            severity="page",
            minutes=3,
            series=Series(metric="pilot_registry_up"),
            comparison=LESS,
            threshold=1,
        ),
        Alert(
            name="VmSilent",
            summary="A VM sends no metrics",
            advice="`ops status` says whether the VM runs, `ops logs VM` shows the end of its "
            "serial console. A VM with a startup script of its own is silent too: `ops audit`.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_node_start_time_seconds"),
            also_vm_down=True,
        ),
        Alert(
            name="AgentsMissing",
            summary="A VM runs fewer agents than it wants",
            advice="This is normal for some minutes after a reboot. Otherwise `ops status` shows "
            "why the window is small and, in the last error, which limit was hit.",
            severity="page",
            minutes=15,
            series=Series(metric="pilot_agents", labels={"state": "running"}),
            divisor=wanted,
            comparison=LESS,
            threshold=online,
        ),
        Alert(
            name="AgentsFailed",
            summary="More than 1 % of the agents on a VM keep failing",
            advice="`ops status` shows why the first one fails. Failed agents are retried by "
            "themselves, at growing intervals.",
            severity="ticket",
            minutes=10,
            series=Series(metric="pilot_agents", labels={"state": "failed"}),
            divisor=wanted,
            threshold=MAX_AGENTS_FAILED,
        ),
        Alert(
            name="MemoryLow",
            summary="A VM has less than a fifth of its memory available",
            advice="Benchmarks are frozen by now. `ops top VM` names the agents that use most. If "
            "all are alike, the VM has too many: lower its `agents`.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_memory_available_bytes"),
            divisor=Series(metric="pilot_memory_total_bytes"),
            comparison=LESS,
            threshold=MIN_MEMORY_AVAILABLE,
        ),
        Alert(
            name="DiskFull",
            summary="A VM's state disk is 90 % full",
            advice="Raise `diskGb` in the stack file: the disk and its file system grow while the "
            "VM runs. `ops status --json` has size and free space. If the file system is smaller "
            "than the disk, `last_error` says why it did not grow.",
            severity="page",
            minutes=5,
            series=Series(metric="pilot_disk_free_bytes"),
            divisor=Series(metric="pilot_disk_size_bytes"),
            comparison=LESS,
            threshold=MIN_DISK_FREE,
        ),
        Alert(
            name="MemoryLeak",
            summary="Agents grow without more connections",
            advice="`ops status` describes the growth, `ops top VM` lists the agents. Take a "
            "leaking release back with `ops roll reject` while it rolls, later in the stack file. "
            "Until then `ops drain VM` and `ops undrain VM` help.",
            severity="ticket",
            minutes=10,
            series=Series(metric="pilot_memory_leak"),
            threshold=0,
        ),
        Alert(
            name="RollHalted",
            summary="A release was halted and taken back",
            advice="`ops status` has the reason. The release stays rejected: `ops roll go` tries "
            "it again, `ops roll reject` continues without it.",
            severity="ticket",
            minutes=1,
            series=Series(metric="pilot_roll_state", labels={"state": "halted"}),
            threshold=0,
        ),
        Alert(
            name="GhostScript",
            summary="A VM runs a script that nobody declared",
            advice="A key in the metadata of the VM or the project causes this. A startup script "
            "at the VM replaces the fleet's own at the next boot. `ops audit` names the key. "
            "Remove it with `gcloud compute instances remove-metadata` or `gcloud compute "
            "project-info remove-metadata`, and find out who put it there.",
            severity="page",
            minutes=1,
            series=Series(metric="pilot_ghosts"),
            threshold=0,
        ),
        Alert(
            name="ScriptFailed",
            summary="A VM's new startup script failed",
            advice="Its agents keep running, but the VM is half updated. `ops logs VM` names the "
            "failed step. `make up` from the commit before cancels the update of VMs that still "
            "wait for their turn, and repairs this one (docs/UPGRADE.md).",
            severity="page",
            minutes=0,
            series=Series(metric="pilot_script_failed"),
            threshold=0,
        ),
        Alert(
            name="SpecNotRead",
            summary="A VM cannot read its spec",
            advice="It keeps its last good spec. `ops status` has the error: an unreachable "
            "metadata server, or a spec that this version of pilot-node does not understand.",
            severity="ticket",
            minutes=15,
            series=Series(metric="pilot_spec_current"),
            comparison=LESS,
            threshold=1,
        ),
        Alert(
            name="OrdersNotRead",
            summary="A VM cannot read its orders",
            advice="It keeps its last good orders. Unreachable: check the bucket, and the "
            "account's right to read it. Malformed: `ops` writes valid orders only, so something "
            "else wrote them.",
            severity="ticket",
            minutes=15,
            series=Series(metric="pilot_orders_current"),
            comparison=LESS,
            threshold=1,
        ),
        Alert(
            name="CopiesOld",
            summary="The newest good copy of the registry's store is hours old",
            advice="If the store is lost now, newer registrations are lost with it. The last error "
            "in the rendezvous' status says why no copy is taken: a full disk, or a bad store.",
            severity="ticket",
            minutes=10,
            series=Series(metric="pilot_registry_copy_age_seconds"),
            threshold=MAX_COPY_AGE_SECONDS,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart of the dashboard."""

    title: str
    # In UCUM.
    unit: str
    # PromQL by legend.
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
        title="Starts, stops and failures per second",
        unit="1/s",
        queries={
            "starts": "sum(rate(pilot_agent_starts_total[5m]))",
            "stops": "sum(rate(pilot_agent_stops_total[5m]))",
            "failures": "sum(rate(pilot_agent_failures_total[5m]))",
        },
    ),
    Panel(
        title="Window: starts allowed in flight",
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
    Panel(title="Memory per agent", unit="By", queries=_by_vm("pilot_agent_memory_mean_bytes")),
    Panel(
        title="Growth of the agents' memory per hour",
        unit="By",
        queries={
            **_by_vm("pilot_memory_growth_bytes_per_hour"),
            "{{vm}}, mean of a day": "sum by (vm) (deriv(pilot_agent_grown_bytes[1d])) * 3600"
            ' * sum by (vm) (pilot_agents{state="running"})',
        },
    ),
    Panel(title="Agents above their limit", unit="1", queries=_by_vm("pilot_agents_over_limit")),
    Panel(title="Connections per agent", unit="1", queries=_by_vm("pilot_agent_connections_mean")),
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
        title="VMs held, or with benchmarks stopped",
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
            "copy in the bucket": "max(pilot_registry_bucket_copy_age_seconds)",
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
