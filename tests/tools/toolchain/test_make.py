"""The Makefile, the shell scripts beside it, and the workflows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools.toolchain.fakes import ROOT
from tools.toolchain import commands

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The Makefile in a folder with a space in its name, over a toolchain that only notes."""
    root = tmp_path / "my fleet"
    (root / "tools" / "toolchain").mkdir(parents=True)
    shutil.copyfile(ROOT / "Makefile", root / "Makefile")
    script = root / "tools" / "toolchain" / "python"
    script.write_text('#!/bin/sh\nshift; echo "$@" >>calls\n[ "$1" != "$FAILING" ]\n')
    script.chmod(0o755)
    return root


def make(root: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words],
        cwd=root,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "FAILING": "", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_alone_lists_every_target_with_a_line(checkout: Path) -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    assert {"lab", "lab-status", "lab-down"} <= set(phony[1].split())
    listed = re.findall(r"^  make ([\w-]+) {2,}\S.*$", make(checkout).stdout, re.MULTILINE)
    assert listed == [target for target in phony[1].split() if not target.startswith("_")]


def test_make_lists_its_targets_in_groups(checkout: Path) -> None:
    groups: dict[str, list[str]] = {}
    for line in make(checkout).stdout.splitlines():
        if line and not line.startswith(" "):
            groups[line] = []
        elif found := re.match(r"  make ([\w-]+) ", line):
            groups[list(groups)[-1]].append(found[1])
    assert list(groups)[:2] == ["Try it on this machine", "Run it on Google Compute Engine"]
    assert groups["Run it on Google Compute Engine"] == ["preview", "up"]
    assert all(groups.values()), groups


@pytest.mark.parametrize("verb", ["preview", "up"])
def test_a_plan_sets_up_what_it_needs_first(checkout: Path, verb: str) -> None:
    assert make(checkout, verb, "STACK=lab", "ARGS=--diff --refresh").returncode == 0
    calls = (checkout / "calls").read_text().splitlines()
    assert calls == ["artifacts", "venv", f"{verb} lab --diff --refresh"]


@pytest.mark.parametrize("failing", ["artifacts", "venv"])
def test_what_cannot_be_set_up_stops_the_plan(checkout: Path, failing: str) -> None:
    assert make(checkout, "preview", FAILING=failing).returncode != 0
    assert "preview" not in (checkout / "calls").read_text()


@pytest.mark.parametrize(
    ("target", "calls"),
    [
        ("lab", ["venv", "python -m lab up"]),
        ("lab-status", ["venv", "python -m lab status"]),
        ("lab-down", ["venv", "python -m lab down"]),
    ],
)
def test_the_lab_is_the_demos(checkout: Path, target: str, calls: list[str]) -> None:
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho python "$@" >>calls\n')
    python.chmod(0o755)
    assert make(checkout, target).returncode == 0
    assert (checkout / "calls").read_text().splitlines() == calls
    (checkout / "calls").unlink()
    assert make(checkout, target, FAILING="venv").returncode != 0
    assert (checkout / "calls").read_text().splitlines() == ["venv"]


@pytest.mark.parametrize("target", ["test", "check"])
def test_who_waits_for_the_tests_sees_them_go_on(checkout: Path, target: str) -> None:
    for name in ("python", "ruff", "mypy", "shellcheck"):
        program = checkout / ".venv" / "bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>calls\n')
        program.chmod(0o755)
    (checkout / "tools" / "toolchain" / "shell-files").symlink_to("/bin/cat")
    shown = make(checkout, target, "ARGS=-k some").stdout.splitlines()
    assert next(line for line in shown if line.startswith("· ")) == "· ruff, mypy, shellcheck"
    assert any(line.startswith("· tests") for line in shown)
    last = (checkout / "calls").read_text().splitlines()[-1]
    assert "console_output_style=count" in last
    assert last.endswith("-k some")
    assert ("not engine" in last) is (target == "check")


def test_clean_keeps_state_and_binaries(checkout: Path) -> None:
    for name in (".venv", ".mypy_cache", "policy/__pycache__", ".state", "artifacts/1.18.0"):
        (checkout / name).mkdir(parents=True)
    assert make(checkout, "clean").returncode == 0
    left = sorted(str(p.relative_to(checkout)) for p in checkout.rglob("*") if p.is_dir())
    assert left == [".state", "artifacts", "artifacts/1.18.0", "policy", "tools", "tools/toolchain"]


def test_clean_takes_nothing_from_under_a_lab(checkout: Path) -> None:
    for name in (".venv", ".lab"):
        (checkout / name).mkdir()
    (checkout / ".lab" / "driver").write_text("qemu\n")
    refused = make(checkout, "clean")
    assert refused.returncode != 0
    assert "`make lab-down` first" in refused.stderr
    assert (checkout / ".venv").exists()
    (checkout / ".lab" / "driver").unlink()
    assert make(checkout, "clean").returncode == 0
    assert not (checkout / ".venv").exists()


def test_shell_files_are_told_by_their_first_line(tmp_path: Path) -> None:
    bodies = {
        "a b": "#!/bin/bash\n",
        "c": "#!/usr/bin/env bash\n",
        "d.sh": "#!/bin/sh -e\n",
        "e": "#!/usr/bin/env python3\n",
        "f.py": 'X = """\n#!/bin/bash\n"""\n',
        "g.sh.j2": "#!/bin/bash\n{{ x }}\n",
        "h": "",
        "i": "\0\1binary",
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(body)
    names = "\0".join([*bodies, "deleted", ""])
    out = subprocess.run(
        [ROOT / "tools" / "toolchain" / "shell-files"],
        cwd=tmp_path,
        input=names,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.split("\0") == ["a b", "c", "d.sh", ""]


def test_ci_runs_what_the_readme_calls_the_test_command() -> None:
    assert "exec make test </dev/null" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in (ROOT / "README.md").read_text()


def actionlint(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    # The one that is pinned, in the same venv.
    shellcheck = Path(sys.executable).with_name("shellcheck")
    # With the Go that there is: another toolchain is not on every machine's way to be had.
    environ = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
    return subprocess.run(
        ["go", "tool", "actionlint", "-no-color", "-shellcheck", str(shellcheck), *arguments],
        cwd=ROOT / "tools" / "toolchain" / "actionlint",
        env=environ,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.engine
@pytest.mark.skipif(shutil.which("go") is None, reason="actionlint is built with Go: none here")
def test_actionlint_finds_nothing_in_the_workflows() -> None:
    done = actionlint(*map(str, WORKFLOWS))
    assert done.returncode == 0, done.stdout + done.stderr
    # It does find a fault.
    broken = WORKFLOWS[0].read_text().replace("runs-on:", "runs-at:")
    done = actionlint("-", text=broken)
    assert done.returncode == 1, done
    assert "runs-at" in done.stdout
    broken = WORKFLOWS[0].read_text().replace('"$STACK"', "$STACK")
    assert "SC2086" in actionlint("-", text=broken).stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_do_little_and_run_pinned_actions(path: Path) -> None:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text())
    assert set(workflow["permissions"] or {}) <= {"contents"}
    for job in workflow["jobs"].values():
        granted = job.get("permissions", workflow["permissions"])
        may = {"contents", "id-token"}
        if path.name == "preview.yml":
            may |= {"pull-requests"}
        assert set(granted) <= may
        assert granted["contents"] == "read"
        assert job["timeout-minutes"] <= 120
        for step in job["steps"]:
            action = step.get("uses")
            if action is not None:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action)


def test_ci_runs_all_tests_with_pulumis_release_and_with_the_one_that_is_built() -> None:
    [path] = [path for path in WORKFLOWS if path.name == "checks.yml"]
    job = yaml.safe_load(path.read_text())["jobs"]["toolchain"]
    assert job["strategy"]["matrix"] == {"toolchain": ["official", "source"]}
    assert set(job["strategy"]["matrix"]["toolchain"]) <= set(commands.CHOICES)
    assert job["env"] == {"PILOT_TOOLCHAIN": "${{ matrix.toolchain }}"}
    assert {"run": ".ci/run"} in job["steps"]


def test_a_plan_of_ci_has_the_policies_settings() -> None:
    [path] = [path for path in WORKFLOWS if path.name == "preview.yml"]
    steps: list[dict[str, Any]] = yaml.safe_load(path.read_text())["jobs"]["preview"]["steps"]
    [plan] = [step["with"] for step in steps if "policyPacks" in step.get("with", {})]
    assert plan["policyPacks"] == "policy"
    assert plan["policyPackConfigs"] == "policy/settings.json"


def test_a_plan_of_ci_is_a_comment_and_so_is_one_that_failed() -> None:
    [path] = [path for path in WORKFLOWS if path.name == "preview.yml"]
    workflow = yaml.safe_load(path.read_text())
    # Not pull_request_target, which hands forks a token that may write. `on` is YAML's true.
    assert workflow[True] == {"pull_request": None}
    steps: list[dict[str, Any]] = workflow["jobs"]["preview"]["steps"]
    [plan] = [step for step in steps if step.get("id") == "plan"]
    assert plan["with"]["comment-on-pr"] is True
    [failed] = [step for step in steps if "GH_TOKEN" in step.get("env", {})]
    assert failed["if"] == "failure() && steps.plan.outcome == 'failure'"
    # Values reach the shell by its environment only.
    assert "${{" not in failed["run"]


# Notes what it is asked; of comments it knows the one that the test says.
GH = """\
#!/bin/sh
printf '%s\\n' "$*" >>"$SEEN"
case $2 in --paginate) [ "$HEADING" = "$EXPECTED" ] && echo "$FOUND" ;; esac
"""


@pytest.mark.parametrize(
    ("found", "asks"),
    [
        ("42\n43", "api --method PATCH repos/o/r/issues/comments/42 --raw-field body="),
        ("", "api --method POST repos/o/r/issues/7/comments --raw-field body="),
    ],
)
def test_a_plan_that_failed_takes_the_place_of_the_comment_of_pulumis_action(
    tmp_path: Path, found: str, asks: str
) -> None:
    """And of no other comment, whoever has made the last one."""
    [path] = [path for path in WORKFLOWS if path.name == "preview.yml"]
    steps: list[dict[str, Any]] = yaml.safe_load(path.read_text())["jobs"]["preview"]["steps"]
    [failed] = [step for step in steps if "GH_TOKEN" in step.get("env", {})]
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    # By which the action finds its comment (its src/libs/pr.ts).
    heading = "#### :tropical_drink: `preview` on pilot-fleet/swarm"
    seen = tmp_path / "seen"
    environ = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SEEN": str(seen),
        "FOUND": found,
        "EXPECTED": heading,
        "GH_REPO": "o/r",
        "PULL_REQUEST": "7",
        "STACK": "swarm",
        "RUN": "https://github.com/o/r/actions/runs/1",
    }
    subprocess.run(["bash", "-e", "-c", failed["run"]], env=environ, check=True)
    lists, change = seen.read_text().split("\n", 1)
    assert lists.startswith("api --paginate repos/o/r/issues/7/comments --jq ")
    assert change.startswith(f"{asks}{heading}\n\n<details open>\n<summary>Pulumi report</summary>")
    assert "[The reason](https://github.com/o/r/actions/runs/1)\n</details>\n" in change


def test_only_a_preview_and_an_audit_may_prove_who_they_are() -> None:
    holders = {p.name: p.read_text() for p in WORKFLOWS if "id-token" in p.read_text()}
    assert holders.keys() == {"audit.yml", "preview.yml"}
    # Not for pull requests: the audit runs the main branch. `on` is YAML's true.
    assert yaml.safe_load(holders["audit.yml"])[True].keys() == {"schedule", "workflow_dispatch"}
