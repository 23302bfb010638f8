"""The rest of the command line: consoles, tunnels, silence, interruptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from lab.cloud.server import Serving
from lab.cloud.web import Request, Response
from lab.machines.processes import ending
from ops.cloud_address import CloudAddress
from ops.google import Cloud
from ops.json_document import seconds
from ops.silence import Silence
from tests.components.fleet import ROOT
from tests.lab.cloud.client import ZONE
from tests.ops.conftest import Ops
from tests.ops.simulated import FLEET, RENDEZVOUS, Simulated


def cloud(url: str) -> Cloud:
    return Cloud(CloudAddress(project="p1", compute=url, storage=url, monitoring=url))


def test_logs(ops: Ops, simulated: Simulated) -> None:
    simulated.console(b"first\r\n" + b"x" * 20_000 + b"\r\n\x1b[2Jlast \xff\r\n")
    end = ops("logs", "swarm-1", "--no-follow")
    assert end.code == 0
    assert "\nlast" in end.out
    assert "\x1b" not in end.out
    assert "first" not in end.out
    assert "first" in ops("logs", "swarm-1", "--no-follow", "--all").out
    assert ops("logs", "swarm-9", "--no-follow").code == 3
    simulated.client.do("POST", f"{ZONE}/instances/swarm-1/stop")
    assert "serial console of swarm-1" in ops("logs", "swarm-1", "--no-follow").err


def test_logs_follow_new_lines(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated.console(b"one\n")
    steps = iter([b"one\ntwo\n", b"one\ntwo\nthree\n"])

    def sleep(_: float) -> None:
        text = next(steps, None)
        if text is None:
            raise KeyboardInterrupt
        simulated.console(text)

    monkeypatch.setattr("time.sleep", sleep)
    found = ops("logs", "swarm-1")
    assert (found.code, found.out) == (130, "one\ntwo\nthree\n")


@pytest.mark.parametrize("command", ["", "pause", "unpause", "drain", "undrain"])
def test_help_shows_unpause_and_not_its_old_word(ops: Ops, command: str) -> None:
    found = ops(*command.split(), "--help")
    assert found.code == 0
    assert "resume" not in found.out
    assert ("unpause" in found.out) == (command in ("", "pause", "unpause"))


def test_the_dashboard_of_a_cloud_on_this_machine(
    ops: Ops, simulated: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "leads nowhere" in ops("dashboard").err
    driver = simulated.serving.lab.driver
    monkeypatch.setattr(driver, "forward", lambda machine, port: port + 1)
    assert "http://127.0.0.1:3001 (a cloud on this machine: no tunnel)" in ops("dashboard").out


@dataclass
class Snoozes:
    """Cloud Monitoring's snoozes, before a lab that has none."""

    serving: Serving
    held: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200

    def __post_init__(self) -> None:
        self._answer = self.serving.lab.answer
        self.serving.lab.answer = self.answer  # type: ignore[method-assign]

    def answer(self, request: Request) -> Response:
        if not request.path.startswith("/v3/projects/p1/snoozes"):
            return self._answer(request)
        if self.status != 200:
            message = "Permission monitoring.snoozes.create denied on resource"
            body = {"error": {"code": self.status, "message": message}}
            return Response(body=body, status=self.status)
        number = request.path.rpartition("/")[2]
        if request.method == "POST":
            name = f"projects/p1/snoozes/{len(self.held)}"
            self.held.append({"name": name, **request.json()})
            return Response(body=self.held[-1])
        found = self.held[int(number)]
        if request.method == "PATCH":
            assert request.query["updateMask"] == "interval.endTime"
            found["interval"]["endTime"] = request.json()["interval"]["endTime"]
        return Response(body=found)


def policy(simulated: Simulated, fleet: str) -> str:
    body = {
        "displayName": "x",
        "combiner": "OR",
        "conditions": [{"displayName": "c"}],
        "userLabels": {"pilot-fleet": fleet},
    }
    answer = simulated.client.call("POST", "/v3/projects/p1/alertPolicies", body)
    assert answer.status == 200, answer
    return str(answer.json["name"])


def test_silence_is_of_this_fleets_alerts_and_ends(simulated: Simulated) -> None:
    mine = [policy(simulated, FLEET) for _ in range(17)]
    policy(simulated, "other")
    snoozes = Snoozes(simulated.serving)
    silence = Silence(cloud=cloud(simulated.serving.url), fleet=FLEET)
    begun = silence.begin("planned", timedelta(hours=1))
    assert len(begun) == 2, "sixteen policies a snooze"
    assert sorted(each for one in snoozes.held for each in one["criteria"]["policies"]) == sorted(
        mine
    )
    until = snoozes.held[0]["interval"]["endTime"]
    for each in begun:
        silence.end(each)
    assert snoozes.held[0]["interval"]["endTime"] < until
    silence.end(begun[0])


def test_no_monitoring_is_no_error(simulated: Simulated) -> None:
    silence = Silence(cloud=cloud(simulated.serving.url), fleet=FLEET)
    assert silence.begin("planned", timedelta(hours=1)) == ()
    policy(simulated, FLEET)
    assert silence.begin("planned", timedelta(hours=1)) == (), "this lab has no snoozes"


def test_without_the_right_to_silence_alerts_it_continues(ops: Ops, simulated: Simulated) -> None:
    policy(simulated, FLEET)
    Snoozes(simulated.serving, status=403)
    with simulated.running():
        found = ops("restart", "--yes", "--limit", "60")
    assert found.code == 0, found
    lines = found.out.splitlines()
    assert lines[0].startswith("alerts are not silenced: silence alerts: the right monitoring.snoo")
    assert "it is in roles/monitoring.snoozeEditor" in lines[0]
    assert lines[-1] == "restart: done"


def test_a_terminated_command_ends_its_silence(simulated: Simulated) -> None:
    """A real process, and SIGTERM in the middle of it."""
    policy(simulated, FLEET)
    snoozes = Snoozes(simulated.serving)
    command = [sys.executable, "-m", "ops", "--endpoint", simulated.serving.url]
    command += ["--project", "p1", "--poll", "0.05", "restart", "--yes"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    with ending(process):
        for line in process.stdout:
            if b"swarm-3: drain" in line:
                break
        assert simulated.order(RENDEZVOUS)["banner"].startswith("restart under way since")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert b"ops restart --resume` continues" in err
    assert b"alerts sound again" in out
    assert b"Traceback" not in err
    assert "banner" not in simulated.order(RENDEZVOUS)
    assert snoozes.held[0]["criteria"]["policies"] != []
    interval = snoozes.held[0]["interval"]
    lasted = (seconds(interval["endTime"]) or 0) - (seconds(interval["startTime"]) or 0)
    assert lasted < 300, "it would have gone on for forty minutes"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["status"],
        ["status", "--json"],
        ["top", "swarm-1"],
        ["watch", "--once"],
        ["logs", "swarm-1", "--no-follow"],
        ["dashboard"],
        ["audit"],
        ["roll"],
    ],
)
def test_output_that_cannot_be_written_is_one_line(
    ops: Ops, simulated: Simulated, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full, and a pipe that nobody reads."""
    simulated.console(b"a line of a console\n")
    driver = simulated.serving.lab.driver
    monkeypatch.setattr(driver, "forward", lambda machine, port: port + 1)
    simulated.nodes["swarm-1"].changes["ghosts"] = ("startup-script",)
    simulated.tick()
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "w") as full, open(writer, "w") as pipe:  # noqa: PTH123
        for to, why in ((full, "no space left on device"), (pipe, "broken pipe")):
            monkeypatch.setattr(sys, "stdout", to)
            found = ops(*arguments)
            assert (found.code, found.err) == (3, f"ops: the answer cannot be written: {why}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_process_without_output_ends_with_one_line(unbuffered: str) -> None:
    """The end of the process does not write its buffers again."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "ops", "--help"],
            cwd=ROOT,
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    words = b"ops: the answer cannot be written: no space left on device\n"
    assert (done.returncode, done.stderr) == (3, words)


def test_a_restart_whose_output_is_gone_ends_its_silence_and_can_be_resumed(
    simulated: Simulated,
) -> None:
    policy(simulated, FLEET)
    command = [sys.executable, "-m", "ops", "--endpoint", simulated.serving.url]
    command += ["--project", "p1", "--poll", "0.05"]
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [*command, "restart", "--yes"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 3, done
    assert b"the answer cannot be written" in done.stderr
    assert b"ops restart --resume` continues" in done.stderr
    assert b"Traceback" not in done.stderr
    assert "banner" not in simulated.order(RENDEZVOUS)
    with simulated.running():
        done = subprocess.run([*command, "restart", "--resume"], cwd=ROOT, check=False)
    assert done.returncode == 0


def test_it_works_in_any_folder(tmp_path: Any) -> None:
    """Usage is 2, and no login is a sentence."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment["NO_GCE_CHECK"] = "true"
    command = [sys.executable, "-m", "ops"]
    for arguments, code in ((["nonsense"], 2), (["status"], 3)):
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert done.returncode == code, (arguments, done)
        assert b"Traceback" not in done.stderr
