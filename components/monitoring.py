"""FleetMonitoring: alerts, a dashboard, and the agent of Google's that feeds them.

Every metric is one of docs/CONTRACT.md, "Metrics": pilot-node serves them on loopback, the Ops
Agent scrapes them there and adds the label `vm`. `prometheus/` holds the same alerts and panels for
people who do not use Cloud Monitoring; tests/monitoring compares the two.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pulumi
import pulumi_gcp as gcp
import yaml

from components.config import Monitoring

METRICS_PORT = 9095
# The rendezvous binary's own metrics, which answer loopback only .
RENDEZVOUS_PORT = 3000
SCRAPE_SECONDS = 60
# Below this fraction of available memory pilot-node freezes benchmarks (docs/CONTRACT.md).
AVAILABLE = 0.20
# A failing agent in a hundred: fewer are started again by themselves, and `ops status` shows them.
FAILED = 0.01
# A good copy of the registry's store is minutes old while it is served.
COPY_SECONDS = 6 * 3600
# Seconds for which an alert on a metric that nobody has written yet is tried again, and the pause.
# A first boot takes a minute or two, the agent's installation some more, and Google says that a new
# metric can take ten minutes to become known.
PATIENCE_SECONDS = 20 * 60
PAUSE_SECONDS = 30.0

_GREATER, _LESS = "COMPARISON_GT", "COMPARISON_LT"


@dataclass(frozen=True, kw_only=True)
class Series:
    """A metric of pilot-node, some of its labels given."""

    metric: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def filter(self) -> str:
        """The filter of Cloud Monitoring that selects it."""
        kind = "counter" if self.metric.endswith(("starts_total", "failures_total")) else "gauge"
        return " AND ".join(
            [
                f'metric.type="prometheus.googleapis.com/{self.metric}/{kind}"',
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
    comparison: str = _GREATER
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
            comparison=_LESS,
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
            comparison=_LESS,
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
            "why it is small, and the wall that was hit is in the last error.",
            severity="page",
            minutes=15,
            series=Series(metric="pilot_agents", labels={"state": "running"}),
            over=wanted,
            comparison=_LESS,
            value=online,
        ),
        Alert(
            name="AgentsFailed",
            summary="More than one agent in a hundred keeps failing on a VM",
            advice="`ops status` shows why the first ones failed and when they are tried again.",
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
            comparison=_LESS,
            value=AVAILABLE,
        ),
        Alert(
            name="MemoryLeak",
            summary="Agents grow without more connections",
            advice="The status has the sentence, `ops top VM` the agents. A release that leaks is "
            "sent back with `ops roll reject`; until then `ops restart` of that VM helps.",
            severity="ticket",
            minutes=10,
            series=Series(metric="pilot_memory_leak"),
            value=0,
        ),
        Alert(
            name="RollHalted",
            summary="A release was halted and taken back",
            advice="The reason is in `ops status`. The rejected release stays rejected; `ops roll` "
            "tries it again or goes on without.",
            severity="ticket",
            minutes=1,
            series=Series(metric="pilot_roll_state", labels={"state": "halted"}),
            value=0,
        ),
        Alert(
            name="GhostScript",
            summary="A VM carries a startup script of its own",
            advice="At its next boot the fleet's own script would not run. `ops audit` names the "
            "key; `gcloud compute instances remove-metadata` removes it. Who put it there?",
            severity="page",
            minutes=1,
            series=Series(metric="pilot_ghosts"),
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
            comparison=_LESS,
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
            comparison=_LESS,
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
)


def dashboard(fleet: str) -> dict[str, Any]:
    """The dashboard's document: two charts a row, on the 48 columns that Google has."""
    width, height = 24, 14
    return {
        "displayName": f"pilot-fleet {fleet}",
        "mosaicLayout": {
            "columns": 48,
            "tiles": [
                {
                    "xPos": width * (index % 2),
                    "yPos": height * (index // 2),
                    "width": width,
                    "height": height,
                    "widget": {"title": panel.title, "xyChart": _chart(panel)},
                }
                for index, panel in enumerate(PANELS)
            ],
        },
    }


def _chart(panel: Panel) -> dict[str, Any]:
    return {
        "chartOptions": {"mode": "COLOR"},
        "dataSets": [
            {
                "legendTemplate": legend.replace("{{", "${metric.labels.").replace("}}", "}"),
                "plotType": "LINE",
                "targetAxis": "Y1",
                "timeSeriesQuery": {"prometheusQuery": query, "unitOverride": panel.unit},
            }
            for legend, query in panel.queries.items()
        ],
        "yAxis": {"scale": "LINEAR"},
    }


def agent_config() -> str:
    """The Ops Agent's configuration (YAML): the journal's logs, metrics of pilot-node.

    By itself it reads /var/log/syslog, which nothing is written to on our VMs (journald.conf).

    One for both roles: the rendezvous' own metrics are scraped where `pilot-role` says so.
    """
    vm = {"source_labels": ["__meta_gce_instance_name"], "target_label": "vm"}
    role = "__meta_gce_metadata_pilot_role"
    return yaml.safe_dump(
        {
            "logging": {
                "receivers": {"journal": {"type": "systemd_journald"}},
                "service": {"pipelines": {"default_pipeline": {"receivers": ["journal"]}}},
            },
            "metrics": {
                "receivers": {
                    "pilot": {
                        "type": "prometheus",
                        "config": {
                            "scrape_configs": [
                                _job("pilot-node", METRICS_PORT, [vm]),
                                _job(
                                    "pilot-rendezvous",
                                    RENDEZVOUS_PORT,
                                    [
                                        {
                                            "source_labels": [role],
                                            "regex": "rendezvous",
                                            "action": "keep",
                                        },
                                        vm,
                                    ],
                                ),
                            ]
                        },
                    }
                },
                "service": {"pipelines": {"pilot": {"receivers": ["pilot"]}}},
            },
        },
        sort_keys=False,
    )


def _job(name: str, port: int, relabel: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "job_name": name,
        "scrape_interval": f"{SCRAPE_SECONDS}s",
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
        "relabel_configs": relabel,
    }


@dataclass(frozen=True, kw_only=True)
class FleetMonitoringArgs:
    """`fleet` is the stack's name, the value of the label `pilot-fleet` of the fleet's VMs."""

    project: pulumi.Input[str]
    zone: pulumi.Input[str]
    fleet: str
    agents: int
    monitoring: Monitoring


class FleetMonitoring(pulumi.ComponentResource):
    """Alert policies, their channels and one dashboard; the Ops Agent where that is asked for.

    Make it last: an alert policy on a metric that nobody has written yet is refused by Google, and
    the first to write one is a VM that is up.
    """

    def __init__(
        self, name: str, args: FleetMonitoringArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetMonitoring", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        last = child
        if args.monitoring.agent:
            agent = _agent(name, args, child)
            last = pulumi.ResourceOptions(parent=self, depends_on=[agent])
        if args.monitoring.enabled:
            channels = [
                _channel(name, args, channel, child) for channel in args.monitoring.channels
            ]
            patience = pulumi.ErrorHook("metric-not-written-yet", Patience())
            last.hooks = pulumi.ResourceHookBinding(on_error=[patience])
            for alert in alerts(agents=args.agents, online=args.monitoring.online):
                _policy(name, args, alert, channels, last)
            gcp.monitoring.Dashboard(
                f"{name}-dashboard",
                project=args.project,
                # In the words of the API, so that a plan compares like with like.
                dashboard_json=json.dumps(dashboard(args.fleet), sort_keys=True),
                opts=child,
            )
        self.register_outputs({})


def _agent(
    name: str, args: FleetMonitoringArgs, opts: pulumi.ResourceOptions
) -> gcp.compute.ZoneVmExtensionPolicy:
    compute = gcp.compute
    return compute.ZoneVmExtensionPolicy(
        f"{name}-ops-agent",
        name=f"{name}-ops-agent",
        project=args.project,
        zone=args.zone,
        description="Scrapes pilot-node's metrics on the fleet's VMs",
        extension_policies=[
            compute.ZoneVmExtensionPolicyExtensionPolicyArgs(
                extension_name="ops-agent", string_config=agent_config()
            )
        ],
        instance_selectors=[
            compute.ZoneVmExtensionPolicyInstanceSelectorArgs(
                label_selector=compute.ZoneVmExtensionPolicyInstanceSelectorLabelSelectorArgs(
                    inclusion_labels={"pilot-fleet": args.fleet}
                )
            )
        ],
        opts=opts,
    )


def _channel(
    name: str, args: FleetMonitoringArgs, channel: str, opts: pulumi.ResourceOptions
) -> pulumi.Input[str]:
    """The full name of a channel, made where it is an address or a topic."""
    if "/notificationChannels/" in channel:
        return channel
    kind, label = ("email", "email_address") if "@" in channel else ("pubsub", "topic")
    made = gcp.monitoring.NotificationChannel(
        f"{name}-{channel.replace('/', '-')}",
        project=args.project,
        display_name=f"pilot-fleet {args.fleet}: {channel.rsplit('/', 1)[-1]}",
        type=kind,
        labels={label: channel},
        user_labels={"pilot-fleet": args.fleet},
        opts=opts,
    )
    return made.name


def _policy(
    name: str,
    args: FleetMonitoringArgs,
    alert: Alert,
    channels: list[pulumi.Input[str]],
    opts: pulumi.ResourceOptions,
) -> None:
    condition = gcp.monitoring.AlertPolicyConditionArgs
    conditions = [
        condition(display_name=alert.summary, condition_absent=_absent(alert, alert.series.filter))
        if alert.value is None
        else condition(display_name=alert.summary, condition_threshold=_threshold(alert))
    ]
    if alert.machine:
        machine = (
            'metric.type="compute.googleapis.com/instance/uptime_total" AND '
            'resource.type="gce_instance" AND '
            f'metadata.user_labels."pilot-fleet"="{args.fleet}"'
        )
        conditions.append(
            condition(
                display_name="A VM is off, or gone",
                condition_absent=_absent(alert, machine, by=("resource.label.instance_id",)),
            )
        )
    gcp.monitoring.AlertPolicy(
        f"{name}-{alert.name}",
        project=args.project,
        display_name=f"pilot-fleet {args.fleet}: {alert.summary}",
        combiner="OR",
        conditions=conditions,
        documentation=gcp.monitoring.AlertPolicyDocumentationArgs(
            content=f"{alert.name}. {alert.advice}", mime_type="text/markdown"
        ),
        notification_channels=channels,
        # A VM that was removed on purpose is absent for ever: a day says enough.
        alert_strategy=gcp.monitoring.AlertPolicyAlertStrategyArgs(auto_close=f"{24 * 3600}s"),
        # `ops` finds the fleet's policies by this label when it silences them.
        user_labels={"pilot-fleet": args.fleet, "severity": alert.severity},
        opts=opts,
    )


# Google groups by the label that the agent's configuration adds; the registry's is one VM's.
_VM = ("metric.label.vm",)


def _threshold(alert: Alert) -> gcp.monitoring.AlertPolicyConditionConditionThresholdArgs:
    monitoring = gcp.monitoring
    over = alert.over
    return monitoring.AlertPolicyConditionConditionThresholdArgs(
        filter=alert.series.filter,
        comparison=alert.comparison,
        threshold_value=alert.value,
        duration=f"{60 * alert.minutes}s",
        aggregations=[
            monitoring.AlertPolicyConditionConditionThresholdAggregationArgs(**_sum("ALIGN_MEAN"))
        ],
        denominator_filter=None if over is None else over.filter,
        denominator_aggregations=None
        if over is None
        else [
            monitoring.AlertPolicyConditionConditionThresholdDenominatorAggregationArgs(
                **_sum("ALIGN_MEAN")
            )
        ],
        trigger=monitoring.AlertPolicyConditionConditionThresholdTriggerArgs(count=1),
    )


def _absent(
    alert: Alert, series: str, by: tuple[str, ...] = _VM
) -> gcp.monitoring.AlertPolicyConditionConditionAbsentArgs:
    monitoring = gcp.monitoring
    return monitoring.AlertPolicyConditionConditionAbsentArgs(
        filter=series,
        duration=f"{60 * alert.minutes}s",
        aggregations=[
            monitoring.AlertPolicyConditionConditionAbsentAggregationArgs(**_sum("ALIGN_MAX", by))
        ],
        trigger=monitoring.AlertPolicyConditionConditionAbsentTriggerArgs(count=1),
    )


def _sum(aligner: str, by: tuple[str, ...] = _VM) -> dict[str, Any]:
    return {
        "alignment_period": f"{SCRAPE_SECONDS}s",
        "per_series_aligner": aligner,
        "cross_series_reducer": "REDUCE_SUM",
        "group_by_fields": list(by),
    }


class Patience:
    """Has an alert tried again while its metric is new: an error hook of Pulumi's.

    On a new fleet no VM has written a metric yet, and Google refuses the alert. All alerts share
    one limit, `PATIENCE_SECONDS` from the first refusal.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._since: float | None = None

    async def __call__(self, failure: pulumi.ErrorHookArgs) -> bool:
        """Whether to try again, after the pause."""
        if not failure.errors or not is_unknown_metric(failure.errors[0]):
            return False
        now = self._clock()
        if self._since is None:
            self._since = now
            pulumi.log.info(
                "no VM has sent its metrics yet, and Google refuses alerts on them until then: "
                f"trying again for {PATIENCE_SECONDS // 60} minutes"
            )
        if now - self._since >= PATIENCE_SECONDS:
            pulumi.log.error(
                f"{failure.name}: its metric was never sent. Everything else of the fleet is made. "
                "Is the Ops Agent on the VMs (`pilot-fleet:monitoring.agent`, or your own with the "
                'configuration of docs/PRODUCTION.md, "Alerts")? Then run `pulumi up` again'
            )
            return False
        await self._sleep(PAUSE_SECONDS)
        return True


def is_unknown_metric(error: str) -> bool:
    """Whether Cloud Monitoring refused a policy for a metric that it does not know (yet)."""
    return any(
        words in error
        for words in ("Cannot find metric", "metric referenced by the provided filter is unknown")
    )
