"""The script as a whole, in a scratch root: role, lock, guard, order, what comes of failures."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from components.startup import STARTUP_DIR
from lab.machines.processes import ending
from startup.node.setup import release
from tests.startup.conftest import Vm
from tests.startup.google import TOKEN, Google, hang_up

BOOT_ID = "proc/sys/kernel/random/boot_id"


def fresh(vm: Vm) -> None:
    vm.use_swarm()
    vm.attach_disk()


def test_a_strangers_vm_is_left_untouched(vm: Vm) -> None:
    before = vm.tree()
    assert vm.run() == (0, "")
    assert vm.tree() == before
    assert vm.google.requests == ["/computeMetadata/v1/instance/attributes/pilot-role"]
    assert vm.log.read_text(encoding="utf-8") == ""


def test_a_swarm_vm_in_the_declared_order(vm: Vm) -> None:
    fresh(vm)
    status, output = vm.run()
    assert status == 0, output
    steps = [line.removeprefix("pilot: ") for line in output.splitlines() if line.endswith(" s)")]
    assert [step.rpartition(" (")[0] for step in steps] == [
        "kernel",
        "state disk",
        "user",
        "program",
        "spec",
        "release",
        "units",
        "start",
        "guard",
    ]
    assert output.endswith("pilot: done: swarm\n")
    assert TOKEN not in output
    boot = vm.read(BOOT_ID).strip()
    sha256 = hashlib.sha256(vm.script.read_bytes()).hexdigest()
    assert vm.read("/run/pilot/guard") == f"{boot} {sha256}\n"
    spec = json.loads(vm.google.attributes["pilot-spec"])
    daemon = spec["release"]["daemon"]["sha256"]
    assert str((vm.root / "opt/pilot/current").readlink()) == f"releases/{daemon}"
    binary = vm.root / "opt/pilot/current/pilot-daemon"
    assert hashlib.sha256(binary.read_bytes()).hexdigest() == daemon
    assert os.access(binary, os.X_OK)
    assert json.loads(vm.read("/run/pilot/spec.json")) == spec
    assert vm.read("/proc/sys/kernel/pid_max") == "4194304\n"
    assert vm.read("/run/pilot/address") == "10.10.0.7\n"
    assert vm.calls("systemctl") == [
        "systemctl daemon-reload",
        "systemctl try-restart systemd-journald.service",
        "systemctl --no-block restart pilot-node.service",
    ]


def test_the_rendezvous(vm: Vm) -> None:
    vm.use_rendezvous()
    vm.attach_disk()
    status, output = vm.run()
    assert status == 0, output
    assert vm.calls("systemctl")[-1] == "systemctl --no-block restart pilot-node.service"
    whitelist = json.loads(vm.read("/var/lib/pilot/registry/rate-limit-whitelist.json"))
    assert whitelist == [{"cidr": "10.10.0.0/20", "rate": 100000}]
    assert 'GOMEMLIMIT="3072MiB"' in vm.read("/run/pilot/rendezvous.env")
    assert not list((vm.root / "etc/systemd/system").glob("pilot-agent*"))


def test_the_second_run_of_a_boot_does_nothing(vm: Vm) -> None:
    fresh(vm)
    assert vm.run()[0] == 0
    before = vm.tree()
    asked = len(vm.google.requests)
    calls = vm.log.read_text(encoding="utf-8")
    assert vm.run() == (0, "pilot: nothing to do: done in this boot, by this script\n")
    assert vm.tree() == before
    assert len(vm.google.requests) == asked + 1
    assert vm.log.read_text(encoding="utf-8") == calls


@pytest.mark.parametrize("change", ["boot", "script"])
def test_another_boot_or_script_runs_again_and_changes_nothing(vm: Vm, change: str) -> None:
    fresh(vm)
    assert vm.run()[0] == 0
    before = vm.tree()
    downloads = vm.google.count("/storage/")
    if change == "boot":
        (vm.root / BOOT_ID).write_text("99999999-2222-3333-4444-555555555555\n", encoding="ascii")
    else:
        vm.script.write_text(vm.script.read_text(encoding="utf-8") + "\n# new", encoding="utf-8")
    status, output = vm.run()
    assert status == 0
    assert output.endswith("done: swarm\n")
    # The unit files are right already: thousands of agents may run, no reload.
    assert vm.calls("systemctl").count("systemctl daemon-reload") == 1
    assert vm.google.count("/storage/") == downloads
    after = vm.tree()
    changed = {path for path in before | after if before.get(path) != after.get(path)}
    assert changed == {"run/pilot/guard"} | ({BOOT_ID} if change == "boot" else set())


def test_the_guard_of_an_earlier_script_does_not_outlive_a_failure(vm: Vm) -> None:
    """A is done, B fails halfway, A is put back: what B did has to be undone."""
    fresh(vm)
    assert vm.run()[0] == 0
    first = vm.script.read_text(encoding="utf-8")
    vm.script.write_text(first + "\n# B", encoding="utf-8")
    vm.stub("systemctl", "exit 3")
    assert vm.run()[0] != 0
    vm.stub("systemctl", "")
    vm.script.write_text(first, encoding="utf-8")
    status, output = vm.run()
    assert (status, output.rpartition("pilot: ")[2]) == (0, "done: swarm\n")


def test_files_of_root_in_run_are_closed_to_others(vm: Vm) -> None:
    """Others must not open the lock, which they could hold, or write beside the guard."""
    fresh(vm)
    assert vm.run()[0] == 0
    run = vm.root / "run/pilot"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.iterdir()}
    assert modes == {
        "lock": 0o600,
        "guard": 0o644,
        "runner": 0o644,
        "spec.json": 0o644,
        "address": 0o644,
        "log": 0o755,
    }
    assert stat.S_IMODE(run.stat().st_mode) == 0o755
    # The agents' output is a file system of its own; its mode is that of the mount.
    (mount,) = (call for call in vm.calls("mount") if "tmpfs" in call)
    options = "nosuid,nodev,noexec,mode=0700,uid=0,gid=0,size=5%,nr_inodes=36864"
    assert mount.endswith(f" -o {options} tmpfs {run}/log")


def test_one_start_of_python_and_few_of_anything_else(vm: Vm) -> None:
    """Where the CPU is emulated, each costs: a second boot, with nothing to write."""
    fresh(vm)
    assert vm.run()[0] == 0
    (vm.root / BOOT_ID).write_text("99999999-2222-3333-4444-555555555555\n", encoding="ascii")
    if not shutil.which("strace"):
        pytest.skip("no strace here to count with")
    trace = vm.root.parent / "trace"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=execve", "-o", str(trace), str(vm.script)],
        env=vm.environment,
        capture_output=True,
        check=False,
    )
    if b"ptrace" in done.stderr:
        pytest.skip(f"strace may not: {done.stderr.decode()}")
    assert done.returncode == 0, done.stdout
    calls = [
        line for line in trace.read_text(encoding="utf-8").splitlines() if line.endswith(" = 0")
    ]
    assert len([line for line in calls if "/dev/fd/3" in line]) == 1
    assert not [line for line in calls if "/sbin/pilot-node" in line]
    assert len(calls) <= 24, "\n".join(calls)


def test_a_vm_without_curl_is_told_at_once(vm: Vm) -> None:
    vm.stub("curl", "exit 127")
    vm.stub("sleep", "exit 9")
    status, output = vm.run(PILOT_RETRY_SECONDS="300")
    assert status == 1
    assert "curl cannot be run" in output
    assert len(vm.calls("curl")) == 1


def test_the_wall_clock_ends_no_retry(vm: Vm) -> None:
    """At boot it jumps, and bash's SECONDS with it."""
    code = """
    sleep() { SECONDS=100000; }
    tries=0
    attempt() { tries=$((tries + 1)); ((tries >= 4)) || return "$TEMPORARY"; }
    retry 300 attempt
    """
    assert vm.call(code) == (0, "")


def waits_for_the_lock(process: subprocess.Popen[str]) -> bool:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii")
    for child in children.split():
        try:
            if Path(f"/proc/{child}/comm").read_text(encoding="ascii") == "flock\n":
                return True
        except OSError:
            # Gone between the two looks.
            continue
    return False


def test_two_in_parallel_do_the_work_once(vm: Vm) -> None:
    fresh(vm)
    # The first one stops in the middle of its work until the second waits for the lock.
    os.mkfifo(vm.root / "inside")
    os.mkfifo(vm.root / "gate")
    vm.stub(
        "systemctl",
        f'[ "$1" = daemon-reload ] || exit 0\n'
        f'echo > "{vm.root}/inside"\nread -r < "{vm.root}/gate"',
    )
    with ending(vm.start()) as first:
        (vm.root / "inside").read_text(encoding="ascii")
        with ending(vm.start()) as second:
            while not waits_for_the_lock(second):
                assert second.poll() is None
            (vm.root / "gate").write_text("go\n", encoding="ascii")
            outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert outputs[0].endswith("done: swarm\n")
    assert outputs[1] == "pilot: nothing to do: done in this boot, by this script\n"
    assert vm.calls("systemctl").count("systemctl daemon-reload") == 1


def test_a_lock_held_for_ever_is_a_failure(vm: Vm) -> None:
    fresh(vm)
    (vm.root / "run/pilot").mkdir(parents=True)
    holder = subprocess.Popen(["flock", str(vm.root / "run/pilot/lock"), "cat"], stdin=-1)
    with ending(holder):
        # It has the lock once somebody else cannot take it.
        probe = ["flock", "--nonblock", str(vm.root / "run/pilot/lock"), "true"]
        while subprocess.run(probe, check=False).returncode == 0:
            pass
        status, output = vm.run(PILOT_LOCK_SECONDS="0")
    assert status == 1
    assert "another run has held" in output
    assert not (vm.root / "run/pilot/guard").exists()


def test_the_lock_is_waited_for_longer_than_a_run_may_take(vm: Vm) -> None:
    """Spec and address, the binary (the last attempt may begin when the others' time is over),
    systemd twice, the disk; e2fsck has what is left."""
    status, output = vm.call(
        'echo "$RETRY_SECONDS $DEVICE_SECONDS $LOCK_SECONDS"',
        PILOT_RETRY_SECONDS="",
        PILOT_DEVICE_SECONDS="",
        PILOT_LOCK_SECONDS="",
    )
    assert status == 0
    retry, device, lock = map(float, output.split())
    longest = 2 * retry + retry + release.DOWNLOAD_SECONDS + device + 2 * 120
    assert lock >= longest + 1800


def test_no_child_inherits_the_lock(vm: Vm) -> None:
    fresh(vm)
    vm.stub("systemctl", f'ls -l /proc/self/fd >> "{vm.log}"')
    assert vm.run()[0] == 0
    lines = [line for line in vm.log.read_text(encoding="utf-8").splitlines() if "->" in line]
    assert lines
    assert not [line for line in lines if "run/pilot/lock" in line]


@pytest.mark.parametrize("step", ["mount", "systemctl", "systemd-sysusers", "mkfs.ext4"])
def test_a_failure_sets_no_guard_and_the_next_run_tries_again(vm: Vm, step: str) -> None:
    fresh(vm)
    kept = (vm.bin / step).read_text(encoding="utf-8") if (vm.bin / step).exists() else None
    vm.stub(step, "exit 3")
    status, output = vm.run()
    assert status != 0
    assert "FAILED in step" in output
    assert vm.read("/run/pilot/guard") == "working\n"
    # Nothing of ours was started.
    assert not [call for call in vm.calls("systemctl") if "pilot-node" in call]
    if kept is None:
        (vm.bin / step).unlink()
    else:
        (vm.bin / step).write_text(kept, encoding="utf-8")
    status, output = vm.run()
    assert status == 0, output
    assert vm.read("/run/pilot/guard").startswith(vm.read(BOOT_ID).strip())


def test_metadata_that_comes_late_only_delays(vm: Vm) -> None:
    fresh(vm)
    vm.google.failures = {"pilot-role": [503, hang_up, 429], "pilot-spec": [500, 503]}
    status, output = vm.run()
    assert status == 0, output
    assert "answers 503" in output
    assert output.count("pilot-spec: http://") == 2


def test_a_metadata_server_that_is_not_up_yet(vm: Vm) -> None:
    fresh(vm)
    attributes, objects = vm.google.attributes, vm.google.objects
    port = vm.google.server.server_port
    vm.google.stop()
    process = vm.start()
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith("pilot: metadata server: curl: (7)"), line
    later = Google(port)
    try:
        later.attributes, later.objects = attributes, objects
        output, _ = process.communicate(timeout=60)
    finally:
        later.stop()
    assert process.returncode == 0, output
    vm.google.server, vm.google.thread = later.server, later.thread


def test_unreachable_is_not_absent(vm: Vm) -> None:
    before = vm.tree()
    vm.google.stop()
    status, output = vm.run(PILOT_RETRY_SECONDS="1", PILOT_RETRY_PAUSE="0.3")
    assert status == 75
    assert "gave up after" in output
    assert vm.tree() == before


@pytest.mark.parametrize(
    ("failure", "said"),
    [(403, "answers 403"), (301, "is this Google's?")],
)
def test_other_answers_of_the_metadata_server_are_final(vm: Vm, failure: int, said: str) -> None:
    vm.google.failures = {"pilot-role": [failure]}
    status, output = vm.run()
    assert status == 1
    assert said in output
    assert vm.google.count("pilot-role") == 1


def test_a_role_that_there_is_not(vm: Vm) -> None:
    vm.google.attributes["pilot-role"] = "swarms"
    assert vm.run() == (
        1,
        (
            'pilot: metadata: pilot-role is "swarms": must be rendezvous or swarm, or not there at'
            " all\n"
        ),
    )


def no_spec(google: Google) -> None:
    del google.attributes["pilot-spec"]


def not_json(google: Google) -> None:
    google.attributes["pilot-spec"] = "{"


def two_problems(google: Google) -> None:
    spec = json.loads(google.attributes["pilot-spec"])
    spec["window"], spec["roll"]["batch"] = 0, "many"
    google.attributes["pilot-spec"] = json.dumps(spec)


def other_role(google: Google) -> None:
    google.attributes["pilot-role"] = "rendezvous"


def large_reserve(google: Google) -> None:
    spec = json.loads(google.attributes["pilot-spec"])
    spec["memory"]["reserveMb"] = 4096
    google.attributes["pilot-spec"] = json.dumps(spec)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_spec, ["no pilot-spec"]),
        (not_json, ["pilot-spec: not JSON"]),
        (two_problems, ["window: must be 1 to 1000, is 0", 'roll.batch: must be an integer, is "']),
        (other_role, ["role: is 'swarm', the metadata's pilot-role is 'rendezvous'"]),
        (large_reserve, ["memory.reserveMb: 4096 is all of this VM's 4096 MiB"]),
    ],
)
def test_a_spec_that_cannot_be_used(
    vm: Vm, spoil: Callable[[Google], None], said: list[str]
) -> None:
    fresh(vm)
    spoil(vm.google)
    status, output = vm.run()
    assert status == 1
    for text in said:
        assert text in output
    assert "Traceback" not in output
    assert vm.read("/run/pilot/guard") == "working\n"


def with_systemd(vm: Vm) -> None:
    """As booted with systemd, which takes timers; pilot-node does not run."""
    (vm.root / "run/systemd/system").mkdir(parents=True)
    vm.stub("systemctl", '[ "$1" != is-active ] && [ "$1" != stop ]')
    vm.stub("systemd-run", f'printf "%s\\0" "$@" > "{vm.root.parent}/scheduled"')


def bucket_refuses(vm: Vm) -> None:
    vm.google.failures = {"/storage/": [403] * 100}


def bucket_is_away(vm: Vm) -> None:
    vm.google.failures = {"/storage/": [503] * 100}


def metadata_is_away(vm: Vm) -> None:
    vm.google.failures = {"pilot-role": [503] * 100}


def another_schema(vm: Vm) -> None:
    spec = json.loads(vm.google.attributes["pilot-spec"])
    vm.google.attributes["pilot-spec"] = json.dumps(spec | {"schema": 99})


def another_role(vm: Vm) -> None:
    vm.google.attributes["pilot-role"] = "swarms"


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (bucket_refuses, 1),
        (bucket_is_away, 1),
        (metadata_is_away, 75),
        (another_schema, 1),
        (another_role, 1),
    ],
)
def test_a_boot_that_failed_is_tried_again(
    vm: Vm, spoil: Callable[[Vm], None], status: int
) -> None:
    """The unit for startup scripts runs once a boot, and pilot-node does not run yet."""
    fresh(vm)
    with_systemd(vm)
    spoil(vm)
    short = {"PILOT_RETRY_SECONDS": "1", "PILOT_RETRY_PAUSE": "0.3"}
    found, output = vm.run(**short)
    assert found == status, output
    assert output.endswith("pilot: it is run again in 10 minutes\n")
    (call,) = vm.calls("systemd-run")
    assert " --collect --unit=pilot-script-again " in call
    assert " --on-active=10 minutes " in call
    # The next one, which is the timer's, fails too.
    found, output = vm.run(**short, PILOT_AGAIN_IN="2 s")
    assert found == status, output
    assert output.endswith("pilot: it is run again in 2 s\n")
    assert " --on-active=2 s " in vm.calls("systemd-run")[1]
    # In place of the first, where that still waits.
    stop = "systemctl stop pilot-script-again.timer pilot-script-again.service"
    assert vm.calls("systemctl").count(stop) == 2


def no_curl(vm: Vm) -> None:
    vm.stub("curl", "exit 127")


def not_googles(vm: Vm) -> None:
    vm.google.failures = {"pilot-role": [403]}


@pytest.mark.parametrize("spoil", [no_curl, not_googles])
def test_a_vm_that_may_not_be_the_fleets_gets_no_timer(vm: Vm, spoil: Callable[[Vm], None]) -> None:
    with_systemd(vm)
    spoil(vm)
    status, output = vm.run()
    assert status == 1
    assert "again" not in output
    assert vm.calls("systemctl") + vm.calls("systemd-run") == []


@pytest.mark.parametrize("spoil", [another_schema, metadata_is_away])
def test_a_timer_that_cannot_be_had_is_said_and_changes_nothing(
    vm: Vm, spoil: Callable[[Vm], None]
) -> None:
    fresh(vm)
    with_systemd(vm)
    vm.stub("systemctl", "exit 4")
    vm.stub("systemd-run", "echo 'Failed to connect to bus: gone' >&2; exit 9")
    spoil(vm)
    status, output = vm.run(PILOT_RETRY_SECONDS="1", PILOT_RETRY_PAUSE="0.3")
    assert status == (75 if spoil is metadata_is_away else 1)
    assert output.endswith(
        "pilot: it cannot be run again in 10 minutes (Failed to connect to bus: gone): restart"
        " the VM\n"
    )


def test_where_there_is_no_systemd_there_is_no_timer(vm: Vm) -> None:
    fresh(vm)
    with_systemd(vm)
    (vm.root / "run/systemd/system").rmdir()
    another_schema(vm)
    status, output = vm.run()
    assert status == 1
    assert "run again" not in output
    assert vm.calls("systemctl") + vm.calls("systemd-run") == []


@pytest.mark.parametrize(
    ("answer", "node", "status", "runs"),
    [
        ("echo pilot-role; echo pilot-spec", 3, 0, True),
        ("echo pilot-role; echo not-startup-script", 3, 0, True),
        ("echo pilot-role; echo startup-script", 3, 1, False),
        ("echo startup-script-url", 3, 1, False),
        ("exit 7", 3, 7, False),
        ("echo pilot-role", 0, 0, False),
    ],
    ids=["ours", "other", "ghost", "ghost-url", "away", "pilot-node runs"],
)
def test_the_command_of_the_timer(vm: Vm, answer: str, node: int, status: int, runs: bool) -> None:
    """Google's runner as pilot-node starts it, unless that runs; a failure, and so another look,
    where the runner would run a ghost or nobody knows."""
    fresh(vm)
    with_systemd(vm)
    another_schema(vm)
    assert vm.run()[0] == 1
    words = (vm.root.parent / "scheduled").read_text(encoding="utf-8").split("\0")[:-1]
    command = words[words.index("/bin/bash") :]
    assert "--property=Restart=on-failure" in words
    # PID 1 would put something in their place.
    assert not [word for word in command if "$" in word]
    vm.stub("systemctl", f"exit {node}")
    vm.stub("curl", answer)
    done = subprocess.run(command, env=vm.environment, check=False)
    assert done.returncode == status
    calls = vm.calls("systemd-run")[1:]
    assert len(calls) == runs
    for call in calls:
        assert call.startswith("systemd-run --no-block --collect --unit=pilot-script --desc")
        assert call.endswith(f" /bin/bash {vm.root}/run/pilot/runner")


@pytest.mark.parametrize(
    "program", ["google_metadata_script_runner", "gce_metadata_script_runner", "of_tomorrow"]
)
def test_a_script_is_run_again_by_the_program_that_googles_unit_names(vm: Vm, program: str) -> None:
    fresh(vm)
    assert vm.run()[0] == 0
    shown = f"{{ path={vm.bin}/{program} ; argv[]={vm.bin}/{program} startup ; ignore_errors=no ;"
    shown += " start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }"
    vm.stub("systemctl", f"echo '{shown}'")
    vm.stub(program, "exit 7")
    command = ["/bin/bash", str(vm.root / "run/pilot/runner")]
    done = subprocess.run(command, env=vm.environment, check=False)
    assert done.returncode == 7
    assert vm.calls(program) == [f"{program} startup"]
    unit = "google-startup-scripts.service"
    assert vm.calls("systemctl")[-1] == f"systemctl show --property=ExecStart --value {unit}"
    # No unit of that name: no guest agent of Google's.
    vm.stub("systemctl", "echo")
    done = subprocess.run(command, env=vm.environment, capture_output=True, check=False)
    assert (done.returncode, vm.calls(program)) == (1, [f"{program} startup"])
    assert b"google-startup-scripts.service has no ExecStart=" in done.stderr


def with_python(vm: Vm, body: str | None) -> None:
    """As on an image whose /usr/bin/python3 is `body`; None where there is none."""
    path = vm.root.parent / "python3"
    if body is not None:
        path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    text = vm.script.read_text(encoding="utf-8")
    assert text.count("/usr/bin/python3") >= 2
    # Of the script itself only: what it carries is compressed.
    vm.script.write_text(text.replace("/usr/bin/python3", str(path)), encoding="utf-8")


OLD = """
exec python3 -IS -c '
import collections, sys
version = collections.namedtuple("version", "major minor micro releaselevel serial")
sys.version_info, sys.argv = version(3, {minor}, 2, "final", 0), sys.argv[1:]
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"))
' "${{@:2}}"
"""


@pytest.mark.parametrize(
    ("python", "found"),
    [
        (OLD.format(minor=9), "has Python 3.9, and"),
        (OLD.format(minor=10), "has Python 3.10, and"),
        (None, "has no "),
    ],
    ids=["Debian 11", "Ubuntu 22.04", "COS"],
)
def test_a_python_that_is_too_old_is_one_sentence(vm: Vm, python: str | None, found: str) -> None:
    fresh(vm)
    with_python(vm, python)
    status, output = vm.run()
    assert status == 1, output
    (sentence,) = [line for line in output.splitlines() if "3.11 or newer" in line]
    assert f"this image {found}" in sentence
    assert "use debian-cloud/debian-12" in sentence
    assert "Traceback" not in output
    assert "done" not in output
    assert not vm.calls("systemctl")
    # Any Python that an image may have gets as far as to say so: RHEL 8 has 3.6.
    ast.parse((STARTUP_DIR / "unpack.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_the_token_is_on_no_command_line(vm: Vm) -> None:
    """Every process's arguments and environment, while a request with the token is served."""
    fresh(vm)
    seen: list[bytes] = []

    def look(handler: BaseHTTPRequestHandler) -> None:
        assert TOKEN in handler.headers["Authorization"]
        for process in Path("/proc").glob("[0-9]*"):
            for name in ("cmdline", "environ"):
                try:
                    seen.append((process / name).read_bytes())
                except OSError:
                    seen.append(b"")
        handler.send_error(503)

    vm.google.failures = {"/storage/": [look]}
    status, output = vm.run()
    assert status == 0, output
    assert any(b"\0release\0units" in text for text in seen)
    assert not any(TOKEN.encode() in text for text in seen)
    assert TOKEN not in output
    for path, content in vm.tree().items():
        assert TOKEN.encode() not in content, path
