"""The command line of `make lab`: whose lab it refuses, and what it does first."""

import sys
import tempfile
from pathlib import Path

import pytest

from lab import __main__ as demo
from lab.cloud.server import serve
from lab.fleet import checkout, cloud, sessions
from lab.fleet.errors import DemoError
from tests.lab.cloud.client import Client


def test_the_lab_of_another_checkout_is_named_and_left_alone(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path / "other") as serving:
        monkeypatch.setattr(cloud, "API", serving.url)
        for word in ("up", "status"):
            assert demo.main([word]) == 1
            said = capsys.readouterr().err
            assert f"is the lab in {tmp_path / 'other'}: end that one first" in said
        assert demo.main(["down"]) == 0
        assert Client(serving.url).get("/lab/status")["instances"] == {}
    assert not state.exists()


def test_the_end_is_a_step_whose_words_show_where_it_fails(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    word = "10.10.0.4 asks for metadata, and no machine has that address"
    command = [sys.executable, "-c", f"import sys; print({word!r}); sys.exit(int(sys.argv[1]))"]
    real = sessions.run
    for code in ("1", "0"):
        monkeypatch.setattr(
            sessions, "run", lambda _, log, code=code: real([*command, code], log=log)
        )
        assert demo.main(["down"]) == int(code)
        said = capsys.readouterr()
        assert said.out.startswith("· the VMs and the cloud end …\n")
        assert word not in said.out
        assert (word in said.err) is (code == "1")
        kept = list(tmp_path.glob("lab-down-*.log"))
        assert len(kept) == int(code)
        for each in kept:
            assert str(each) in said.err
            each.unlink()
    assert "The lab is down" in said.out


@pytest.mark.parametrize("serving", [True, False])
def test_machines_of_another_driver_are_named_before_anything_is_done(
    state: Path,
    serving: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (state / "driver").write_text("container\n")
    monkeypatch.setattr(sessions, "run", lambda *_, **__: pytest.fail("something was done"))
    monkeypatch.setenv("LAB_DRIVER", "qemu")
    if serving:
        monkeypatch.setattr(cloud, "lab_status", lambda: {"driver": "containers"})
    else:
        (state / "machines" / "p_z_vm").mkdir(parents=True)
        (state / "machines" / "p_z_vm" / "machine.json").write_text("{}")
    assert demo.main(["up"]) == 1
    said = capsys.readouterr().err
    assert "a lab with the container driver is here: `make lab-down` first" in said
    assert "LAB_DRIVER=container make lab" in said
    # The lab that is here keeps its driver, with or without a name, although containers would not
    # be chosen now.
    monkeypatch.setattr(cloud, "no_containers", lambda: "containers need root")
    for asked in ("container", ""):
        monkeypatch.setenv("LAB_DRIVER", asked)
        driver, _ = cloud.choose_driver()
        assert driver == "container"
        cloud.refuse_another(driver)


def test_the_driver_is_chosen_and_says_why(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chosen(asked: str, no_containers: str) -> tuple[str, str]:
        monkeypatch.setenv("LAB_DRIVER", asked)
        monkeypatch.setattr(cloud, "no_containers", lambda: no_containers)
        return cloud.choose_driver()

    root = "containers: this is root, and they work here; LAB_DRIVER=qemu for QEMU guests"
    assert chosen("", "") == ("container", root)
    assert chosen("", "containers need root") == (
        "qemu",
        "QEMU guests: containers need root; LAB_DRIVER decides by hand",
    )
    assert chosen("qemu", "") == ("qemu", "QEMU guests: LAB_DRIVER=qemu")
    monkeypatch.setenv("LAB_DRIVER", "kvm")
    assert demo.main(["up"]) == 1
    assert "LAB_DRIVER is 'kvm': choose qemu or container" in capsys.readouterr().err


def test_a_lab_is_not_removed_from_under_a_make_lab_that_is_at_work(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sessions, "run", lambda *_, **__: pytest.fail("something was done"))
    with (state / "demo.lock").open("a+") as theirs:
        assert sessions.take(theirs)
        assert demo.main(["down"]) == 1
    said = capsys.readouterr().err
    assert "a `make lab` is at work in this checkout" in said
    assert (state / "demo.lock").exists()


def test_quick_checks_come_before_slow_builds(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_DRIVER", "qemu")
    done: list[str] = []

    def run(command: list[str], **_: object) -> None:
        done.append(" ".join(command[1:]))
        if command[-1] == "ensure":
            raise DemoError("no Go")

    monkeypatch.setattr(sessions, "run", run)
    with pytest.raises(DemoError, match="no Go"):
        demo.up()
    packages = "-m lab.cloud prepare --driver qemu --packages"
    assert done == [packages, "tools/toolchain/toolchain.py ensure"]


@pytest.mark.parametrize("text", [b"config: {pilot-fleet:swarm: 3}", b"a: [", b"\xff", None])
def test_a_stack_file_that_says_no_fleet_is_a_sentence(
    state: Path,
    tmp_path: Path,
    text: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    if text is not None:
        (tmp_path / "Pulumi.lab.yaml").write_bytes(text)
    for word in ("up", "status"):
        assert demo.main([word]) == 1
        assert capsys.readouterr().err.startswith("lab: Pulumi.lab.yaml: ")
