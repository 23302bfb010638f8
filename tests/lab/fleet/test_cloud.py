"""The lab's cloud: whose it is, and its VMs that are off."""

from pathlib import Path

import pytest

from lab.cloud.server import serve
from lab.fleet import checkout, cloud
from lab.fleet.errors import DemoError, until
from lab.machines import processes
from tests.lab.cloud.client import Client, vm
from tests.lab.cloud.fake_drivers import PATIENCE, Recorder
from tests.lab.fleet.conftest import Served
from tests.lab.fleet.fleet import CONFIG, ZONE


def test_a_state_behind_a_link_is_this_checkouts(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "STATE", tmp_path / "link")
    checkout.STATE.symlink_to(state)
    with serve(checkout.STATE) as serving:
        monkeypatch.setattr(cloud, "API", serving.url)
        assert cloud.lab_status() is not None


def test_a_state_without_machines_takes_any_driver(state: Path) -> None:
    cloud.refuse_another("qemu")
    (state / "driver").write_text("container\n")
    cloud.refuse_another("qemu")


def test_vms_that_are_off_are_started_and_named(
    served: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    served.do("POST", f"{ZONE}/instances/swarm-2/stop")
    served.do("POST", f"{ZONE}/instances", vm("somebody-elses"))
    served.do("POST", f"{ZONE}/instances/somebody-elses/stop")
    cloud.start_what_is_off(CONFIG)
    assert cloud.states(CONFIG) == {"swarm-1": "RUNNING", "swarm-2": "RUNNING"}
    assert capsys.readouterr().out == "  swarm-2 is off: starting it\n"
    assert served.get(f"{ZONE}/instances/somebody-elses")["status"] == "TERMINATED"


def test_a_vm_that_does_not_start_is_told_with_the_reason(
    serving: Served,
) -> None:
    driver = Recorder()
    with serving("swarm-1", driver=driver) as client:
        client.do("POST", f"{ZONE}/instances/swarm-1/stop")
        driver.failing = {"start"}
        with pytest.raises(DemoError, match="instances/swarm-1: start does not work today"):
            cloud.start_what_is_off(CONFIG)


def test_a_cloud_that_is_gone_is_a_sentence(state: Path) -> None:
    with pytest.raises(DemoError, match="answers no longer"):
        cloud.start_what_is_off(CONFIG)


def test_a_cloud_whose_start_is_interrupted_does_not_come_up_later(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        # Its command line shows a moment after it has begun.
        until(lambda: bool(processes.having(f"--state\0{state}")), PATIENCE, "it was not started")
        raise KeyboardInterrupt

    monkeypatch.setattr(cloud, "until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cloud.serve("qemu")
    assert processes.having(f"--state\0{state}") == []
