"""FleetMonitoring: alerts, a dashboard, and Google's Ops Agent, which feeds them.

components/alerts.py says what is watched. pilot-node serves its metrics on loopback; the Ops Agent
scrapes them there and adds the label `vm`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_gcp as gcp
import yaml

from components.alerts import PANELS, Alert, Panel, alerts
from components.config import DASHBOARD_PORT, MonitoringConfig

METRICS_PORT = 9095
SCRAPE_SECONDS = 60
# How long an alert on a metric that nobody has written yet is retried. A first boot takes a minute
# or two, the agent's installation some more, and a new metric can take ten minutes to become known
# (Google's documentation).
RETRY_FOR_SECONDS = 20 * 60
RETRY_PAUSE_SECONDS = 30.0


def dashboard(fleet: str) -> dict[str, Any]:
    """The dashboard's document: two charts per row, on Google's 48 columns."""
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
    """The Ops Agent's configuration (YAML) for both roles: the journal's logs and the metrics.

    Its default log source is /var/log/syslog, which stays empty on our VMs (journald.conf). The
    rendezvous' own metrics are scraped only where `pilot-role` is rendezvous.
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
                                    # The dashboard serves its metrics, on loopback only.
                                    DASHBOARD_PORT,
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
    """Arguments of `FleetMonitoring`."""

    project: pulumi.Input[str]
    # The zone of every VM that names none.
    fleet_zone: str
    # All zones with a VM.
    zones: tuple[str, ...]
    # The stack's name, which is the value of the label `pilot-fleet` of the fleet's VMs.
    fleet: str
    agents: int
    monitoring: MonitoringConfig


class FleetMonitoring(pulumi.ComponentResource):
    """Alert policies, their channels and one dashboard; optionally the Ops Agent.

    Declare it after the VMs: Google refuses an alert on a metric that no VM has written yet.
    """

    def __init__(
        self, name: str, args: FleetMonitoringArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("pilot:fleet:FleetMonitoring", name, None, opts)
        child = pulumi.ResourceOptions(parent=self)
        agents = (
            [_agent(name, args, zone, child) for zone in args.zones]
            if args.monitoring.agent
            else []
        )
        # Cloud Monitoring's id of the dashboard; None without monitoring.
        self.dashboard_id: pulumi.Output[str] | None = None
        if args.monitoring.enabled:
            channels = [
                _channel(name, args, channel, child) for channel in args.monitoring.channels
            ]
            retry = pulumi.ErrorHook("metric-not-written-yet", RetryUnknownMetric())
            after_agents = pulumi.ResourceOptions(
                parent=self,
                depends_on=agents,
                hooks=pulumi.ResourceHookBinding(on_error=[retry]),
            )
            for alert in alerts(agents=args.agents, online=args.monitoring.online):
                _policy(name, args, alert, channels, after_agents)
            self.dashboard_id = gcp.monitoring.Dashboard(
                f"{name}-dashboard",
                project=args.project,
                # As the API writes it, so that a plan shows no difference.
                dashboard_json=json.dumps(dashboard(args.fleet), sort_keys=True),
                opts=child,
            ).id
        self.register_outputs({"dashboardId": self.dashboard_id})


def _agent(
    name: str, args: FleetMonitoringArgs, zone: str, opts: pulumi.ResourceOptions
) -> gcp.compute.ZoneVmExtensionPolicy:
    compute = gcp.compute
    # Such a policy reaches one zone. A second zone adds a resource and renames none.
    suffix = "" if zone == args.fleet_zone else f"-{zone}"
    return compute.ZoneVmExtensionPolicy(
        f"{name}-ops-agent{suffix}",
        name=f"{name}-ops-agent{suffix}",
        project=args.project,
        zone=zone,
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
    """The full name of a channel. An e-mail address or topic gets a new channel."""
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
        if alert.threshold is None
        else condition(display_name=alert.summary, condition_threshold=_threshold(alert))
    ]
    if alert.also_vm_down:
        machine = (
            'metric.type="compute.googleapis.com/instance/uptime_total" AND '
            'resource.type="gce_instance" AND '
            f'metadata.user_labels."pilot-fleet"="{args.fleet}"'
        )
        conditions.append(
            condition(
                display_name="A VM is off or gone",
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
        # A VM that was removed on purpose is absent for ever: close its alert after a day.
        alert_strategy=gcp.monitoring.AlertPolicyAlertStrategyArgs(auto_close=f"{24 * 3600}s"),
        # `ops` finds the fleet's policies by this label when it silences them.
        user_labels={"pilot-fleet": args.fleet, "severity": alert.severity},
        opts=opts,
    )


# The label that the agent's configuration adds.
_VM = ("metric.label.vm",)


def _threshold(alert: Alert) -> gcp.monitoring.AlertPolicyConditionConditionThresholdArgs:
    monitoring = gcp.monitoring
    divisor = alert.divisor
    return monitoring.AlertPolicyConditionConditionThresholdArgs(
        filter=alert.series.filter,
        comparison=alert.comparison,
        threshold_value=alert.threshold,
        duration=f"{60 * alert.minutes}s",
        aggregations=[
            monitoring.AlertPolicyConditionConditionThresholdAggregationArgs(**_sum("ALIGN_MEAN"))
        ],
        denominator_filter=None if divisor is None else divisor.filter,
        denominator_aggregations=None
        if divisor is None
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


class RetryUnknownMetric:
    """Pulumi error hook that retries an alert while Google does not know its metric.

    On a new fleet no VM has written a metric yet, and Google refuses the alert. All alerts share
    one limit, `RETRY_FOR_SECONDS` from the first refusal.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._first_refusal: float | None = None

    async def __call__(self, failure: pulumi.ErrorHookArgs) -> bool:
        """Whether to try again, after the pause."""
        if not failure.errors or not is_unknown_metric(failure.errors[0]):
            return False
        now = self._clock()
        if self._first_refusal is None:
            self._first_refusal = now
            pulumi.log.info(
                "no VM has sent its metrics yet, and Google refuses alerts on them until then: "
                f"retrying for {RETRY_FOR_SECONDS // 60} minutes"
            )
        if now - self._first_refusal >= RETRY_FOR_SECONDS:
            pulumi.log.error(
                f"{failure.name}: its metric was never sent. The rest of the fleet is made. Check "
                "that the VMs have the Ops Agent (`pilot-fleet:monitoring.agent`, or your own with "
                'the configuration of docs/PRODUCTION.md, "Alerts"), then run `pulumi up` again'
            )
            return False
        await self._sleep(RETRY_PAUSE_SECONDS)
        return True


def is_unknown_metric(error: str) -> bool:
    """Whether Cloud Monitoring refused a policy for a metric that it does not know (yet)."""
    return any(
        words in error
        for words in ("Cannot find metric", "metric referenced by the provided filter is unknown")
    )
