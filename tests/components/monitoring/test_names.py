"""Alerts, panels and rules: the same everywhere, and about metrics that there are."""

from __future__ import annotations

import re

import yaml

from components import alerts, monitoring
from tests.components.monitoring.names import (
    contract_metrics,
    grafana,
    metric_names,
    policies,
    queries,
    rules,
)


def test_every_metric_that_is_named_is_in_the_contract() -> None:
    there = contract_metrics()
    assert {"pilot_agents", "pilot_registry_up"} <= metric_names()
    assert metric_names() - set(there) == set()


def test_every_label_that_is_named_is_in_the_contract() -> None:
    there = contract_metrics()
    used = {
        (metric, label)
        for query in queries()
        for metric, labels in re.findall(r"(pilot_[a-z0-9_]+)\{([^}]*)\}", query)
        for label in re.findall(r"(\w+)=", labels)
    }
    used |= {
        (series.metric, label)
        for alert in policies()
        for series in (alert.series, alert.divisor)
        if series is not None
        for label in series.labels
    }
    assert ("pilot_agents", "state") in used
    assert [pair for pair in used if pair[1] not in there[pair[0]].split(",")] == []


def test_counters_are_counters() -> None:
    """A rate is of a counter; the type of Google's metric follows from pilot-node's."""
    for query in queries():
        for metric in re.findall(r"rate\((pilot_[a-z0-9_]+)", query):
            assert metric.endswith("_total"), query
    for alert in policies():
        for series in filter(None, (alert.series, alert.divisor)):
            assert f"/{series.metric}/gauge" in series.filter
            assert not series.metric.endswith("_total")


def test_rules_are_the_alerts_of_cloud_monitoring() -> None:
    ours = rules()
    # A slope over a day is PromQL's alone (docs/DECISIONS.md).
    assert list(ours) == [*(alert.name for alert in policies()), "AgentsGrow"]
    for alert in policies():
        rule = ours[alert.name]
        assert rule["for"] == f"{alert.minutes}m", alert.name
        assert rule["labels"] == {"severity": alert.severity}, alert.name
        assert rule["annotations"]["summary"] == alert.summary, alert.name
        for series in filter(None, (alert.series, alert.divisor)):
            assert series.metric in rule["expr"], alert.name
            for key, value in series.labels.items():
                assert f'{key}="{value}"' in rule["expr"], alert.name
        if alert.threshold is None:
            assert " unless " in rule["expr"]
            continue
        sign = {"COMPARISON_LT": "<", "COMPARISON_GT": ">"}[alert.comparison]
        expected = "9000 / 9500" if alert.name == "AgentsMissing" else f"{alert.threshold:g}"
        if alert.name == "FleetOnlineLow":
            # Prometheus knows the number of agents from the VMs, Google from the configuration.
            assert alert.threshold == 9000
            assert f"{sign} (9000 / 9500) * " in rule["expr"]
        else:
            assert rule["expr"].endswith(f" {sign} {expected}"), (alert.name, rule["expr"])


def test_the_ghost_scripts_alert_names_both_places() -> None:
    (alert,) = [alert for alert in policies() if alert.name == "GhostScript"]
    for command in ("instances remove-metadata", "project-info remove-metadata"):
        assert f"gcloud compute {command}" in alert.advice


def test_grafana_has_the_panels_of_cloud_monitoring() -> None:
    theirs = {
        panel["title"]: {target["legendFormat"]: target["expr"] for target in panel["targets"]}
        for panel in grafana()["panels"]
    }
    assert theirs == {panel.title: dict(panel.queries) for panel in alerts.PANELS}


def test_the_dashboards_charts_do_not_overlap() -> None:
    for tiles, columns in (
        (
            [
                (tile["xPos"], tile["yPos"], tile["width"], tile["height"])
                for tile in monitoring.dashboard("test")["mosaicLayout"]["tiles"]
            ],
            48,
        ),
        ([tuple(panel["gridPos"][k] for k in "xywh") for panel in grafana()["panels"]], 24),
    ):
        taken = [
            (column, row)
            for x, y, width, height in tiles
            for column in range(x, x + width)
            for row in range(y, y + height)
        ]
        assert len(taken) == len(set(taken))
        assert max(column for column, _ in taken) < columns


def test_the_agents_configuration() -> None:
    config = yaml.safe_load(monitoring.agent_config())
    # Of the journal: our VMs have no other log.
    (journal,) = config["logging"]["receivers"]
    assert config["logging"]["service"]["pipelines"]["default_pipeline"]["receivers"] == [journal]
    # The built-in pipeline is replaced: it reads files that journald does not write here.
    logs = config["logging"]["service"]["pipelines"]["default_pipeline"]["receivers"]
    assert [config["logging"]["receivers"][name]["type"] for name in logs] == ["systemd_journald"]
    receivers = config["metrics"]["receivers"]
    assert config["metrics"]["service"]["pipelines"]["pilot"]["receivers"] == list(receivers)
    jobs = receivers["pilot"]["config"]["scrape_configs"]
    assert {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs} == {
        "pilot-node": ["127.0.0.1:9095"],
        "pilot-rendezvous": ["127.0.0.1:3000"],
    }
    for job in jobs:
        # Every query asks for it, and no series has it by itself.
        assert [rule for rule in job["relabel_configs"] if rule.get("target_label") == "vm"]
        # An interval below ten seconds the agent raises.
        assert job["scrape_interval"] == "60s"
