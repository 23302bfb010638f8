"""Units and environments: what stands in them, what systemd says to them, how values are quoted."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.startup import STARTUP_DIR
from startup.node.desired.spec import RendezvousSpec, SwarmSpec, parse
from startup.node.machine import files, user
from startup.node.machine.agent_units import OWN
from startup.node.machine.paths import Paths
from startup.node.pressure import benchmarks
from startup.node.rendezvous_loop import LAST_SNAPSHOT
from startup.node.setup import apply, units
from startup.node.setup.limits import KernelFacts
from startup.node.setup.units import TemplateError, environment_file, fill
from startup.node.swarm import drain
from tests.startup import specs
from tests.startup.conftest import Vm
from tests.startup.node.rendezvous.registry import snapshot

MACHINE = KernelFacts(ram=4 << 30, page=4096)
UNITS = "/etc/systemd/system"
VARIABLE = re.compile(r"\$\{([A-Z_]+)\}")


def swarm(**changes: object) -> SwarmSpec:
    spec = parse(specs.text(specs.swarm(**changes)))
    assert isinstance(spec, SwarmSpec)
    return spec


def rendezvous() -> RendezvousSpec:
    spec = parse(specs.text(specs.rendezvous()))
    assert isinstance(spec, RendezvousSpec)
    return spec


def all_units() -> dict[str, str]:
    return units.unit_files(MACHINE, swarm()) | units.unit_files(MACHINE, rendezvous())


def directives(unit: str) -> dict[str, str]:
    lines = all_units()[f"{UNITS}/{unit}"].splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_numbers_of_this_vm() -> None:
    assert directives("pilot.slice") == {
        "Description": "Pilot agents",
        "RequiresMountsFor": "/var/lib/pilot /run/pilot/log",
        "RefuseManualStop": "yes",
        "TasksMax": "infinity",
        "MemoryMax": str((4096 - 1000) << 20),
        "CPUWeight": "100",
        # No IPAddressDeny: each unit below would pay for it (isolation.py does it for all of them).
    }
    # Both addresses of the metadata server.
    assert directives("pilot-rendezvous.service")["IPAddressDeny"].endswith(" fd20:ce::254")
    assert directives("pilot-rendezvous.service")["LimitNOFILE"] == str(9500 * 4 * 2 + 4096)


def test_benchmarks_are_no_part_of_the_agents() -> None:
    # A dash would make them one: systemd's slices are a tree by name.
    assert "-" not in benchmarks.SLICE
    assert directives(benchmarks.SLICE) == {
        "Description": "Benchmarks",
        "MemoryMax": directives("pilot.slice")["MemoryMax"],
        "TasksMax": "16384",
    }


def test_an_agent_as_design_says() -> None:
    agent = directives("pilot-agent-05@.service")
    assert "User" not in agent
    assert agent["Slice"] == "pilot-%j.slice"
    assert agent["TimeoutStopSec"] == "30"
    assert agent["Restart"] == "no"
    assert int(agent["OOMScoreAdjust"]) > 0
    assert int(agent["LimitNOFILE"]) >= 1024
    # Of its own user: a daemon has eight.
    assert int(agent["LimitNPROC"]) >= 64
    # pilot-node drains them at a power-off, so it has to end before they do.
    assert agent["Before"] == "pilot-node.service"
    assert agent["EnvironmentFile"] == "/run/pilot/variant/%i/agent.env"
    # What a stranger's program does not need, and thousands of units can bear (docs/UNITS.md).
    assert agent["NoNewPrivileges"] == "yes"
    # For setpriv and unshare; the daemon has none (tests/vm reads it of a running one).
    assert agent["CapabilityBoundingSet"] == "CAP_SETUID CAP_SETGID CAP_SETPCAP"
    assert agent["AmbientCapabilities"] == "CAP_SETUID CAP_SETGID"
    assert agent["RestrictNamespaces"] == "yes"
    # Go lists the interfaces through netlink.
    families = "AF_UNIX AF_INET AF_INET6 AF_NETLINK"
    assert agent["RestrictAddressFamilies"] == families
    # Each of these is a mount namespace, and a start that costs twice as much.
    assert not [name for name in agent if name.startswith(("Private", "Protect", "ReadOnly"))]
    command = agent["ExecStart"]
    user = "/usr/bin/setpriv --bounding-set=-all /usr/bin/unshare --setgid 610 --setuid 19000%i "
    assert command.startswith(f"{user}/run/pilot/variant/%i/pilot-daemon ")
    # The number is that to which pilot-node gives the home.
    assert user.replace("%i", "10345").split()[-1] == str(OWN.user(10345))
    # Never the vendor's public registry, never a call home, never STUN.
    for flag in (
        "-registry ${PILOT_AGENT_REGISTRY}",
        "-beacon ${PILOT_AGENT_BEACON}",
        "-endpoint ${PILOT_AGENT_ADDRESS}:%i",
        '-telemetry-url ""',
        '-motd-feed-url ""',
        "-no-skillinject",
        "-socket /var/lib/pilot/agents/%i/daemon.sock",
        "-identity /var/lib/pilot/agents/%i/",
    ):
        assert flag in command


def test_every_variable_of_a_unit_is_in_its_environment() -> None:
    agent = units.agent_environment(swarm(), "10.10.0.7")
    registry = units.rendezvous_environment(MACHINE, rendezvous())
    for name, environment in (("agent-05@", agent), ("rendezvous", registry)):
        used = VARIABLE.findall(directives(f"pilot-{name}.service")["ExecStart"])
        assert used
        assert set(used) <= set(environment)


def test_the_same_port_on_two_vms_is_two_owners() -> None:
    """The registry allows one node an owner (e-mail), and ports repeat on every VM."""
    template = directives("pilot-agent-05@.service")["ExecStart"]
    emails = set()
    for name in ("swarm-1", "swarm-2"):
        environment = units.agent_environment(swarm(name=name), "10.10.0.7")
        email = template.partition(" -email ")[2].split()[0]
        for variable in VARIABLE.findall(email):
            email = email.replace(f"${{{variable}}}", environment[variable])
        emails.add(email)
    assert emails == {"agent-%i@swarm-1.invalid", "agent-%i@swarm-2.invalid"}


def _stop_seconds(spec: SwarmSpec | RendezvousSpec) -> int:
    text = units.unit_files(MACHINE, spec)[f"{UNITS}/pilot-node.service"]
    return int(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0])


def test_a_power_off_gives_pilot_node_its_time() -> None:
    assert drain.SHUTDOWN_SECONDS + 10 < _stop_seconds(swarm()) < 80
    # An answer may begin within twice its time; and there is time left for the rendezvous' own end.
    assert 2 * LAST_SNAPSHOT < _stop_seconds(rendezvous()) < 60


def test_nothing_is_enabled() -> None:
    """A unit without [Install] cannot be enabled: at boot only the script starts our units."""
    for name, text in all_units().items():
        assert "[Install]" not in text, name


def test_every_role_has_its_units() -> None:
    assert set(units.unit_files(MACHINE, swarm())) == {
        f"{UNITS}/{name}"
        for name in (
            "pilot.slice",
            "pilot-.slice.d/60-pilot.conf",
            *OWN.templates,
            "pilot-node.service",
            "pilotbench.slice",
        )
    }
    assert set(units.unit_files(MACHINE, rendezvous())) == {
        f"{UNITS}/{name}"
        for name in (
            "pilot.slice",
            "pilot-node.service",
            "pilot-rendezvous.service",
        )
    }


def test_systemd_takes_every_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    root = tmp_path / "root"
    paths = Paths(root=root)
    units.write_all(paths, all_units())
    for path in ("run/pilot/variant/10001/pilot-daemon", "opt/pilot/current/pilot-rendezvous"):
        files.write(root / path, "#!/bin/true\n", 0o755)
    for path in ("usr/local/sbin/pilot-node", "usr/bin/env", "usr/bin/setpriv"):
        files.write(root / path, "#!/bin/true\n", 0o755)
    # The system's own targets, which the units hang on.
    shutil.copytree("/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
    names = ["pilot.slice", "pilotbench.slice", OWN.unit(10001), "pilot-node.service"]
    for name in [*names, "pilot-rendezvous.service"]:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", f"--root={root}", name],
            capture_output=True,
            text=True,
            check=False,
        )
        ours = [line for line in done.stderr.splitlines() if "pilot" in line]
        assert ours == [], name
        assert done.returncode == 0, done.stderr


def test_defaults_operators_and_ours_in_this_order() -> None:
    spec = swarm(environment={"GOGC": "50", "GOMAXPROCS": "2"})
    assert units.agent_environment(spec, "10.10.0.7") == {
        "GOGC": "50",
        "GOMAXPROCS": "2",
        "PILOT_APPSTORE_CATALOG_URL": "http://127.0.0.1:9/none",
        "PILOT_AGENT_ADDRESS": "10.10.0.7",
        "PILOT_AGENT_BEACON": "10.10.0.2:9001",
        "PILOT_AGENT_REGISTRY": "10.10.0.2:9000",
        "PILOT_AGENT_VM": "swarm-1",
    }
    assert units.agent_environment(swarm(), "10.10.0.7")["GOMAXPROCS"] == "1"


printable = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=30)


def by_systemd(text: str) -> dict[str, str]:
    """Parses as systemd 252 a file whose values are all in double quotes, as in its
    load_env_file(): a backslash takes the meaning from the four characters that have one, before
    any other it stands for itself."""
    found = {}
    for line in text.splitlines():
        name, _, quoted = line.partition("=")
        assert (quoted[0], quoted[-1]) == ('"', '"')
        value, rest = "", list(quoted[1:-1])
        while rest:
            char = rest.pop(0)
            assert char != '"', "the value ends early"
            if char == "\\":
                following = rest.pop(0)
                value += following if following in '"\\`$' else char + following
            else:
                value += char
        found[name] = value
    return found


@given(st.dictionaries(st.sampled_from(["A", "B_2", "_c"]), printable))
def test_any_value_comes_back_from_an_environment_file(environment: dict[str, str]) -> None:
    lines = environment_file(environment).split("\n")
    assert len(lines) == len(environment) + 1
    # splitlines() also splits at Unicode's own line ends, which systemd does not know.
    found: dict[str, str] = {}
    for line in lines[:-1]:
        found |= by_systemd(line.replace("\u2028", "\ue000").replace("\u2029", "\ue001"))
    assert found == {
        name: value.replace("\u2028", "\ue000").replace("\u2029", "\ue001")
        for name, value in environment.items()
    }


def test_a_shell_reads_the_same(tmp_path: Path) -> None:
    """The file is also shell: who sources it while looking for a fault sees the same values."""
    value = "a b\t'c' \"d\" $HOME `id` \\ \\n # é ${X} $(id)"
    path = tmp_path / "agent.env"
    path.write_text(environment_file({"A": value}), encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", f'source "{path}"; printf %s "$A"'],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout == value


def test_every_placeholder_and_every_value() -> None:
    assert fill("a @b@ pilot-node@.service\n", {"b": "1"}) == "a 1 pilot-node@.service\n"
    with pytest.raises(TemplateError):
        fill("@b@", {})
    with pytest.raises(TemplateError):
        fill("b", {"b": "1"})


def test_only_files_that_differ_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert files.write(path, "1\n", 0o600)
    before = path.stat()
    assert not files.write(path, "1\n", 0o600)
    assert path.stat().st_ino == before.st_ino
    assert files.write(path, "1\n", 0o644)
    assert files.write(path, "2\n", 0o644)
    assert path.read_text(encoding="utf-8") == "2\n"
    assert [p.name for p in path.parent.iterdir()] == ["b"]


def test_the_rest_of_an_interrupted_write_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "roll.json"
    left = [tmp_path / f".roll.json.ab_{number}cdef" for number in range(3)]
    others = [tmp_path / ".roll.json.old.abcdefgh", tmp_path / ".roll.json.new", tmp_path / "x"]
    young = tmp_path / ".roll.json.fresh_12"
    for each in (*left, *others, young):
        each.write_text("half", encoding="utf-8")
    now = time.time()
    for each in (*left, *others):
        os.utime(each, (now - 700, now - 700))
    # The clock was set back.
    os.utime(left[0], (now + 7000, now + 7000))
    assert files.write(path, "1\n")
    assert sorted(tmp_path.iterdir()) == sorted([path, young, *others])


def other(kind: str, path: Path) -> None:
    """Something else of that name, as whoever owns the directory can make it."""
    victim = path.with_name("victim")
    victim.write_text("1\n", encoding="utf-8")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(victim)
    elif kind == "device":
        os.mknod(path, stat.S_IFSOCK | 0o644)
    else:
        path.write_bytes(b"1" * 1_000_000)


@pytest.mark.parametrize("kind", ["fifo", "link", "device", "large"])
def test_a_trap_is_replaced_and_never_followed(tmp_path: Path, kind: str) -> None:
    """In a process of its own: one that waits for a FIFO's writer can be ended."""
    path = tmp_path / "whitelist"
    other(kind, path)
    code = (
        "import sys; from pathlib import Path; from startup.node.machine import files; "
        "print(files.write(Path(sys.argv[1]), '1\\n'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        check=True,
        cwd=STARTUP_DIR.parent,
        text=True,
        timeout=10,
    )
    assert done.stdout == "True\n"
    assert not path.is_symlink()
    assert path.read_text(encoding="utf-8") == "1\n"
    assert (tmp_path / "victim").read_text(encoding="utf-8") == "1\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["victim", "whitelist"]


def test_a_full_disk_names_the_path_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left .*`df -h`.*{tmp_path}/spec"):
        files.write(tmp_path / "spec", "1\n")
    assert list(tmp_path.iterdir()) == []


def test_the_registrys_directory_is_roots_and_the_rendezvous_works_in_it(vm: Vm) -> None:
    vm.use_rendezvous()
    vm.mount("/var/lib/pilot")
    (vm.root / "var/lib/pilot").mkdir(parents=True)
    words = "ROLE=rendezvous; ensure_node spec rendezvous store"
    status, output = vm.call(words)
    # pilot-node has not looked in the bucket yet.
    assert status == 1, output
    assert "pilot-node looks in the bucket first" in output
    (vm.root / "run/pilot/registry-may-start-empty").touch()
    status, output = vm.call(words)
    assert status == 0, output
    found = (vm.root / "var/lib/pilot/registry").stat()
    assert stat.S_IMODE(found.st_mode) == 0o1770
    if os.geteuid() == 0:
        assert (found.st_uid, found.st_gid) == (0, user.UID)


def test_a_disk_that_became_read_only_lets_the_rendezvous_start(vm: Vm) -> None:
    """As far as it is ours to let it."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    vm.use_rendezvous()
    vm.mount("/var/lib/pilot")
    disk = vm.root / "var/lib/pilot"
    disk.mkdir(parents=True)
    words = "ROLE=rendezvous; ensure_node spec rendezvous store"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "pilot-test", disk], check=True)
    try:
        vm.call(words)
        content = snapshot(5)
        (disk / "registry/registry.json").write_bytes(content)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        status, output = vm.call(words)
        assert status == 0, output
        assert json.loads(vm.read("/run/pilot/store.json"))["nodes"] == 5
        assert (disk / "registry/registry.json").read_bytes() == content
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        (disk / "registry").chmod(0o700)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        status, output = vm.call(words)
        assert status == 1, output
        assert re.search("Read-only file system: `dmesg` .*/var/lib/pilot/registry", output)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_without_the_state_disk_there_is_no_registry(vm: Vm) -> None:
    vm.use_rendezvous()
    (vm.root / "var/lib/pilot").mkdir(parents=True)
    status, output = vm.call("ROLE=rendezvous; ensure_node spec rendezvous store")
    assert status == 1, output
    assert "/var/lib/pilot is not mounted" in output
    assert list((vm.root / "var/lib/pilot").iterdir()) == []


def test_the_whitelist_stands_before_the_rendezvous_starts() -> None:
    unit = directives("pilot-rendezvous.service")
    # As root: what an operator put into the rendezvous' environment is not in this one's.
    assert unit["ExecStartPre"].startswith("+/usr/bin/env -i PATH=")
    assert unit["ExecStartPre"].endswith(" /usr/local/sbin/pilot-node store")
    assert unit["Restart"] == "always"
    # systemd fails at a path that is not there before `store` could make it.
    assert unit["ReadWritePaths"] == "-/var/lib/pilot/registry"
    assert "-store /var/lib/pilot/registry/registry.json" in unit["ExecStart"]


def test_the_user_has_the_same_number_everywhere(vm: Vm) -> None:
    assert f"readonly PILOT_UID={user.UID}\n" in vm.script.read_text(encoding="utf-8")


def test_the_user_is_made_by_systemd(vm: Vm) -> None:
    (vm.bin / "systemd-sysusers").unlink()
    if not shutil.which("systemd-sysusers"):
        pytest.skip("no systemd-sysusers here")
    (vm.root / "etc").mkdir()
    status, output = vm.call("ensure_user; ensure_user")
    if status and "ermission" in output:
        pytest.skip("making a user needs root")
    assert status == 0, output
    assert "pilot:x:610:610:Pilot:/var/lib/pilot:/usr/sbin/nologin\n" in vm.read("etc/passwd")
    assert re.search("^pilot-local:x:[0-9]+:pilot$", vm.read("etc/group"), re.MULTILINE)


def test_a_user_of_an_earlier_script_becomes_a_member(vm: Vm) -> None:
    (vm.root / "etc").mkdir()
    (vm.root / "etc/passwd").write_text("pilot:x:610:610::/var/lib/pilot:/usr/sbin/nologin\n")
    (vm.root / "etc/group").write_text("pilot:x:610:\npilot-local:x:611:notpilot\n")
    status, output = vm.call("ensure_user; ensure_user")
    assert status == 0, output
    (called,) = vm.calls("systemd-sysusers")
    assert called.endswith(" m pilot pilot-local")


_DEBIAN = """\
# passwd, group and others
passwd:         files systemd
group:          files systemd
hosts:          files dns
"""


def test_a_users_groups_are_looked_for_in_one_file_first() -> None:
    found = units.nsswitch(_DEBIAN)
    assert found == f"{_DEBIAN}initgroups: files systemd  # pilot-fleet\n"
    assert units.nsswitch(found) == found
    # OS Login, as the guest agent writes it; then without it.
    logins = found.replace("files systemd\n", "files systemd cache_oslogin oslogin\n")
    new = units.nsswitch(logins)
    assert new.endswith("initgroups: files systemd cache_oslogin oslogin  # pilot-fleet\n")
    assert new.count("initgroups") == 1
    assert units.nsswitch(new.replace(" cache_oslogin oslogin", "")) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("group: sss files\n", "group: sss files\ninitgroups: files sss files  # pilot-fleet\n"),
        ("group: files\ninitgroups: sss\n", "group: files\ninitgroups: sss\n"),
        ("group: files", "group: files\ninitgroups: files  # pilot-fleet\n"),
        ("passwd: files\n", "passwd: files\n"),
        ("# a\fgroup: sss\n\n", "# a\fgroup: sss\n\n"),
        ("", ""),
    ],
)
def test_other_lines_of_an_nsswitch_stay(text: str, expected: str) -> None:
    assert units.nsswitch(text) == expected


def test_an_nsswitch_that_cannot_be_written_keeps_no_vm_from_coming_up(vm: Vm) -> None:
    vm.use_swarm()
    (vm.root / "etc/nsswitch.conf").mkdir(parents=True)
    status, output = vm.call("ROLE=swarm; ensure_node spec swarm units")
    assert status == 0, output
    assert "/etc/nsswitch.conf stays as it is, so each start takes longer: " in output
    assert "Slice=pilot-%j.slice" in vm.read(f"/etc/systemd/system/{OWN.templates[0]}")


def test_a_number_that_someone_else_has_is_a_failure(vm: Vm) -> None:
    vm.stub(
        "systemd-sysusers",
        'mkdir -p "$PILOT_ROOT/etc"; echo pilot:x:999:999::/:/bin/sh > "$PILOT_ROOT/etc/passwd"',
    )
    status, output = vm.call("ensure_user")
    assert status == 1
    assert "user pilot is 999:999, must be 610:610" in output


def test_a_restart_of_journald_only_when_its_fragment_changed(vm: Vm) -> None:
    vm.use_swarm()
    status, output = vm.call("ROLE=swarm; ensure_node spec swarm units units")
    assert status == 0, output
    assert vm.calls("systemctl") == [
        "systemctl daemon-reload",
        "systemctl try-restart systemd-journald.service",
    ]
    assert "SystemMaxUse=1G" in vm.read("/etc/systemd/journald.conf.d/60-pilot.conf")


@pytest.mark.parametrize("name", ["daemon-reload", "try-restart"])
def test_a_reload_that_failed_is_made_the_next_time(
    vm: Vm, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It timed out, or pilot-node was killed in between: the files are written by then."""
    paths, spec = Paths(root=vm.root), parse(specs.text(specs.swarm()))
    told: list[str] = []

    def broken(*arguments: str) -> None:
        if arguments[0] == name:
            raise subprocess.TimeoutExpired("systemctl", 120)

    monkeypatch.setattr(apply, "systemctl", broken)
    with pytest.raises(subprocess.TimeoutExpired):
        apply.apply_units(paths, spec, lambda _: None)
    monkeypatch.setattr(apply, "systemctl", lambda *arguments: told.append(arguments[0]))
    apply.apply_units(paths, spec, lambda _: None)
    apply.apply_units(paths, spec, lambda _: None)
    # journald's fragment comes after the units: it is not written before systemd has read those.
    assert told == {"daemon-reload": ["daemon-reload", "try-restart"], "try-restart": [name]}[name]


def test_a_spec_that_this_machine_cannot_be_is_not_this_boots(vm: Vm) -> None:
    vm.use_swarm(memory={**specs.swarm()["memory"], "reserveMb": 4096})
    status, output = vm.call("ROLE=swarm; ensure_node spec swarm")
    assert status == 1
    assert "pilot: spec: memory.reserveMb: 4096 is all of this VM's" in output
    assert not (vm.root / "run/pilot/spec.json").exists()


def test_a_directory_in_a_files_place_is_said_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "roll.json"
    path.mkdir(mode=0o600)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(IsADirectoryError, match=r"roll\.json"):
        files.write(path, "1\n", 0o600)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [p.name for p in tmp_path.iterdir()] == ["roll.json"]
