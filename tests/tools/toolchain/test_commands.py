"""toolchain.py as it is called: which Pulumi runs, with which arguments and environment."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools.toolchain import fakes
from tests.tools.toolchain.fakes import ROOT, Machine

CHECKER = """\
import os, sys
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write("python " + " ".join(sys.argv[1:]) + "\\n")
if sys.argv[2] == "components.dead_zones":
    print(os.environ.get("FAKE_DEAD_ZONES", '{"exclude": [], "sentences": []}'))
    sys.exit(0)
sys.exit(int(os.environ.get("FAKE_CONFIG_STATUS", "0")))
"""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "machine")
    # No Google VM and no gcloud, wherever the tests run.
    made.environ["CLOUDSDK_CONFIG"] = str(tmp_path / "gcloud")
    made.environ["FAKE_PULUMI_VERSION"] = "v3.272.0"
    made.install("pulumi", fakes.PULUMI)
    return made


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As much of a checkout as a plan needs, in a folder with a space in its name."""
    root = tmp_path / "my fleet"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tools" / "toolchain", root / "tools" / "toolchain", ignore=ignored)
    (root / "Pulumi.yaml").write_text("name: pilot-fleet\nruntime: python\n")
    (root / "Pulumi.swarm.yaml").write_text("config:\n  gcp:project: p\n")
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    fakes.executable(python, CHECKER)
    return root


on_google = pytest.mark.skipif(
    "Google" in (Path("/sys/class/dmi/id/product_name").read_text().strip())
    if Path("/sys/class/dmi/id/product_name").exists()
    else False,
    reason="this machine is a VM on Google Cloud, which has credentials by itself",
)


def test_an_installed_pulumi_is_used_as_it_is(machine: Machine) -> None:
    result = machine.run("ensure")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        f"Using the installed Pulumi 3.272.0 ({machine.folder}/bin/pulumi) and its plugins."
    ]
    assert not machine.toolchain.exists()


def test_an_old_pulumi_is_named_and_another_one_built(machine: Machine) -> None:
    machine.environ["FAKE_PULUMI_VERSION"] = "v3.100.0"
    machine.install("go", fakes.GO)
    fakes.modules_for(machine)
    result = machine.run("ensure")
    assert result.returncode == 0
    assert "is 3.100.0, older than 3.259.0, so it is not used" in result.stderr
    # There is no way to it here, which is said in a line.
    assert "Pulumi's own release does not come (get.pulumi.com failed: " in result.stderr
    assert "Using Pulumi v3.259.0, built from source" in result.stderr
    added = json.loads(machine.run("env", "--json").stdout)
    # Ours comes before the old one and its old language host.
    first = shutil.which("pulumi", path=added["PATH"])
    assert first is not None
    assert Path(first).is_relative_to(machine.toolchain)


def test_our_own_pulumi_on_path_is_not_an_installed_one(machine: Machine) -> None:
    (machine.folder / "bin" / "pulumi").unlink()
    machine.install("go", fakes.GO)
    fakes.modules_for(machine)
    added = json.loads(machine.run("env", "--json").stdout)
    machine.environ |= added
    again = json.loads(machine.run("env", "--json").stdout)
    assert again["PULUMI_HOME"] == added["PULUMI_HOME"]


def test_the_environment_can_be_evaluated_by_a_shell(machine: Machine, checkout: Path) -> None:
    lines = machine.run("env", root=checkout).stdout.splitlines()
    words = [shlex.split(line) for line in lines]
    assert all(word[0] == "export" and len(word) == 2 for word in words)
    assert f"PULUMI_BACKEND_URL=file://{checkout}/.state" in [word[1] for word in words]


def test_exec_runs_in_that_environment(machine: Machine) -> None:
    machine.install("show", "import os; print(os.environ['PULUMI_SKIP_UPDATE_CHECK'])")
    assert machine.run("exec", "--", "show").stdout == "1\n"
    missing = machine.run("exec", "--", "nothing-like-it")
    assert missing.returncode == 127
    assert missing.stderr == "nothing-like-it: no such command on PATH.\n"


@on_google
def test_a_plan_without_google_says_so(machine: Machine, checkout: Path) -> None:
    result = machine.run("preview", "swarm", "--diff", root=checkout)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        "no Google credentials: this plan was made without asking Google"
    ]
    seen = json.loads(result.stdout)
    assert seen["GOOGLE_OAUTH_ACCESS_TOKEN"].startswith("placeholder")
    assert seen["PILOT_REFUSE_UNKNOWN"] is None
    assert seen["PULUMI_BACKEND_URL"] == f"file://{checkout}/.state"
    assert machine.calls()[0] == "python -m components.stack_file Pulumi.swarm.yaml"
    assert machine.calls()[-2] == "pulumi stack select --create --non-interactive swarm"
    assert machine.calls()[-1] == (
        "pulumi preview --stack swarm --policy-pack policy"
        " --policy-pack-config policy/settings.json --non-interactive --refresh=false --diff"
    )


def test_a_plan_with_credentials_is_made_with_them(machine: Machine, checkout: Path) -> None:
    machine.environ["GOOGLE_APPLICATION_CREDENTIALS"] = "/key.json"
    result = machine.run("preview", "swarm", root=checkout)
    assert result.stderr == ""
    assert json.loads(result.stdout)["GOOGLE_OAUTH_ACCESS_TOKEN"] is None


def test_a_wrong_configuration_stops_before_the_engine(machine: Machine, checkout: Path) -> None:
    machine.environ["FAKE_CONFIG_STATUS"] = "1"
    assert machine.run("preview", "swarm", root=checkout).returncode == 1
    assert [call for call in machine.calls() if call.startswith("pulumi")] == []


def test_an_unknown_stack_is_told_the_known_ones(machine: Machine, checkout: Path) -> None:
    result = machine.run("preview", "swram", root=checkout)
    assert result.returncode == 1
    assert result.stderr == "There is no Pulumi.swram.yaml here (STACK is one of: swarm).\n"


@on_google
def test_up_without_google_is_one_sentence(machine: Machine, checkout: Path) -> None:
    machine.environ["PILOT_FLEET_YES"] = "1"
    result = machine.run("up", "swarm", root=checkout)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("No Google credentials")
    assert machine.calls() == []


def test_up_where_nobody_can_be_asked(machine: Machine, checkout: Path) -> None:
    machine.environ["GOOGLE_APPLICATION_CREDENTIALS"] = "/key.json"
    refused = machine.run("up", "swarm", root=checkout)
    assert refused.returncode == 1
    assert "PILOT_FLEET_YES=1" in refused.stderr
    machine.environ["PILOT_FLEET_YES"] = "1"
    agreed = machine.run("up", "swarm", root=checkout)
    assert agreed.returncode == 0
    assert "docs/PRODUCTION.md" in agreed.stderr
    assert json.loads(agreed.stdout)["PILOT_REFUSE_UNKNOWN"] == "1"
    assert machine.calls()[-1] == (
        "pulumi up --stack swarm --policy-pack policy"
        " --policy-pack-config policy/settings.json --non-interactive --yes"
    )


@pytest.mark.parametrize("verb", ["preview", "up"])
def test_what_a_dead_zone_has_is_left_out_and_said_at_the_end(
    machine: Machine, checkout: Path, verb: str
) -> None:
    machine.environ |= {
        "GOOGLE_APPLICATION_CREDENTIALS": "/key.json",
        "PILOT_FLEET_YES": "1",
        "PULUMI_BACKEND_URL": "gs://state",
        "FAKE_DEAD_ZONES": json.dumps({"exclude": ["urn:1", "urn:2"], "sentences": ["It is dead"]}),
    }
    result = machine.run(verb, "swarm", "--diff", root=checkout)
    assert result.returncode == 0
    assert result.stderr == "It is dead\nIt is dead\n"
    assert machine.calls()[-3:-1] == [
        "pulumi stack export --stack swarm --non-interactive",
        "python -m components.dead_zones swarm",
    ]
    assert " --exclude=urn:1 --exclude=urn:2 " in machine.calls()[-1]
    machine.environ["FAKE_UPDATE_STATUS"] = "7"
    assert machine.run(verb, "swarm", root=checkout).returncode == 7


def test_the_labs_stack_is_planned_against_the_labs_own_state(
    machine: Machine, checkout: Path
) -> None:
    machine.environ |= {"GOOGLE_APPLICATION_CREDENTIALS": "/key.json", "PILOT_FLEET_YES": "1"}
    (checkout / "Pulumi.lab.yaml").write_text("config:\n  gcp:project: p\n")
    # Without a lab a plan is a plan on paper.
    seen = json.loads(machine.run("preview", "lab", root=checkout).stdout)
    assert seen["PULUMI_BACKEND_URL"] == f"file://{checkout}/.state"
    (checkout / ".lab" / "pulumi").mkdir(parents=True)
    machine.environ["PULUMI_BACKEND_URL"] = "gs://state"
    seen = json.loads(machine.run("preview", "lab", root=checkout).stdout)
    assert seen["PULUMI_BACKEND_URL"] == f"file://{checkout}/.lab/pulumi"
    refused = machine.run("up", "lab", root=checkout)
    assert refused.returncode == 1
    assert refused.stderr.startswith("The stack lab is carried out by `make lab`")
    assert len(refused.stderr.splitlines()) == 1
    # As `make lab` does.
    machine.environ["PULUMI_BACKEND_URL"] = f"file://{checkout}/.lab/pulumi"
    assert machine.run("up", "lab", root=checkout).returncode == 0
    assert machine.calls()[-1].startswith("pulumi up --stack lab ")


def test_a_backend_of_ones_own_is_not_warned_about(machine: Machine, checkout: Path) -> None:
    machine.environ |= {
        "GOOGLE_APPLICATION_CREDENTIALS": "/key.json",
        "PILOT_FLEET_YES": "1",
        "PULUMI_BACKEND_URL": "gs://state",
    }
    result = machine.run("up", "swarm", root=checkout)
    assert result.stderr == ""
    assert json.loads(result.stdout)["PULUMI_BACKEND_URL"] == "gs://state"
    assert not (checkout / ".state").exists()


@pytest.mark.parametrize(("url", "warned"), [("file://~", True), ("https://x.example", False)])
@pytest.mark.parametrize("by", ["login", "project"])
def test_a_local_backend_is_warned_about_however_it_was_chosen(
    machine: Machine, checkout: Path, by: str, url: str, warned: bool
) -> None:
    machine.environ |= {"GOOGLE_APPLICATION_CREDENTIALS": "/key.json", "PILOT_FLEET_YES": "1"}
    if by == "login":
        (machine.folder / "home" / ".pulumi").mkdir()
        login = machine.folder / "home" / ".pulumi" / "credentials.json"
        login.write_text(json.dumps({"current": url}))
    else:
        with (checkout / "Pulumi.yaml").open("a") as project:
            project.write(f"backend:\n  url: {url}\n")
    result = machine.run("up", "swarm", root=checkout)
    assert result.returncode == 0
    assert (f"Warning: the state of this fleet is kept in {url}" in result.stderr) is warned
    assert json.loads(result.stdout)["PULUMI_BACKEND_URL"] is None


def test_a_login_of_ones_own_stands(machine: Machine, checkout: Path) -> None:
    login = machine.folder / "home" / ".pulumi"
    login.mkdir()
    (login / "credentials.json").write_text('{"current": "https://api.pulumi.com"}')
    added = json.loads(machine.run("env", "--json", root=checkout).stdout)
    assert "PULUMI_BACKEND_URL" not in added


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["preview"], ["env", "--yaml"]])
def test_usage(machine: Machine, arguments: list[str]) -> None:
    result = machine.run(*arguments)
    assert result.returncode == 2
    assert "toolchain.py preview STACK" in result.stderr
    assert machine.run("--help").stdout == result.stderr


def test_a_python_is_found_or_missed_in_a_sentence(tmp_path: Path) -> None:
    finder = ROOT / "tools" / "toolchain" / "python"
    found = subprocess.run(
        [finder, "-c", "import sys; print(sys.version_info >= (3, 11))"],
        env={"PATH": str(tmp_path), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout == "True\n"
    missed = subprocess.run(
        [finder, "-c", ""], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert missed.returncode == 1
    assert len(missed.stderr.splitlines()) == 1
    assert "Python 3.11 or newer" in missed.stderr


def test_nothing_here_needs_a_package() -> None:
    """The set-up runs before anything is installed: -S hides every installed package."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); import tools.toolchain.commands"
    subprocess.run([sys.executable, "-I", "-S", "-c", program, str(ROOT)], check=True)
