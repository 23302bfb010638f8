"""Rules and queries, checked by Prometheus itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tests.components.monitoring.conftest import run
from tests.components.monitoring.names import RULES, RULES_TEST, queries, rules


def test_every_query_is_one(promtool: Path, tmp_path: Path) -> None:
    names = [f"query:{index}" for index, _ in enumerate(queries())]
    records = [
        {"record": name, "expr": query} for name, query in zip(names, queries(), strict=True)
    ]
    for name, wrong in (("right.yml", []), ("wrong.yml", [{"record": "x", "expr": "sum(a"}])):
        text = yaml.safe_dump({"groups": [{"name": "all", "rules": records + wrong}]})
        (tmp_path / name).write_text(text)
    checked = run([str(promtool), "check", "rules", "--lint=none", "right.yml"], tmp_path)
    assert checked.returncode == 0, checked.stderr
    refused = run([str(promtool), "check", "rules", "--lint=none", "wrong.yml"], tmp_path)
    assert refused.returncode != 0


def test_rules(promtool: Path, tmp_path: Path) -> None:
    for file in (RULES, RULES_TEST):
        shutil.copy(file, tmp_path)
    checked = run([str(promtool), "check", "rules", RULES.name], tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    tested = run([str(promtool), "test", "rules", RULES_TEST.name], tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_a_change_of_any_rule_is_noticed(promtool: Path, tmp_path: Path) -> None:
    """Each rule in turn so that it never fires: its test has to fail."""
    shutil.copy(RULES_TEST, tmp_path)
    unnoticed = []
    for name in rules():
        document = yaml.safe_load(RULES.read_text())
        for rule in document["groups"][0]["rules"]:
            if rule["alert"] == name:
                rule["expr"] = "vector(1) > 2"
        (tmp_path / RULES.name).write_text(yaml.safe_dump(document))
        if run([str(promtool), "test", "rules", RULES_TEST.name], tmp_path).returncode == 0:
            unnoticed.append(name)
    assert unnoticed == []
