"""The metrics in alerts, panels and rules, for comparison with those that a VM serves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from components import alerts
from components.config import MonitoringConfig

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "components" / "prometheus_rules.yml"
RULES_TEST = ROOT / "components" / "prometheus_rules_test.yml"
GRAFANA = ROOT / "components" / "grafana_dashboard.json"
_METRIC = re.compile(r"\bpilot_[a-z0-9_]+")


def metric_names() -> frozenset[str]:
    """Every metric that an alert, a panel or a rule names: `pilot_agents` and so on.

    A fleet of a rendezvous VM and a swarm VM together serves all of them. Those that a status may
    lack (docs/CONTRACT.md: "absent where it cannot be had") are in it as well.
    """
    return frozenset(_METRIC.findall("\n".join(queries())))


def queries() -> Iterator[str]:
    """All PromQL, and the metrics of Cloud Monitoring's alerts."""
    for alert in policies():
        yield alert.series.metric
        if alert.divisor is not None:
            yield alert.divisor.metric
    for panel in alerts.PANELS:
        yield from panel.queries.values()
    for rule in rules().values():
        yield rule["expr"]
    for panel in grafana()["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def policies() -> tuple[alerts.Alert, ...]:
    """The alerts of Cloud Monitoring, for a fleet as in docs/FACTS.md."""
    return alerts.alerts(agents=9500, online=MonitoringConfig.online)


def rules() -> dict[str, dict[str, Any]]:
    """The rules of components/prometheus_rules.yml, by name."""
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def grafana() -> dict[str, Any]:
    """The dashboard of components/grafana_dashboard.json."""
    document = json.loads(GRAFANA.read_text())
    assert isinstance(document, dict)
    return document


def contract_metrics() -> dict[str, str]:
    """The metrics of docs/CONTRACT.md, "Metrics", with the label that each has ("" for none)."""
    text = (ROOT / "docs" / "CONTRACT.md").read_text()
    section = text.split("## Metrics", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    found = re.findall(r"`(pilot_[a-z0-9_]+)(?:\{([a-z0-9,]+)\})?`", "\n".join(rows))
    return dict(found)
