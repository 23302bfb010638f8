"""A fleet of containers through what a fleet goes through: every boot is a real one.

The tests share one fleet and each leaves it whole; the last one takes it down.
"""

import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from lab.cloud.compute import maintenance
from startup.node.machine.agent_units import OWN
from startup.node.machine.paths import AGAIN as AGAIN_BY_HAND
from tests.components.monitoring.names import metric_names
from tests.vm.conftest import Boot
from tests.vm.fleet import CLOUD, RENDEZVOUS, STORE, ZONE, Fleet, said
from tests.vm.lost_registry import account_is_refused
from tests.vm.rows import EXITS

with warnings.catch_warnings():
    # On import it announces when it will drop this Python, which is Debian 12's.
    warnings.simplefilter("ignore", FutureWarning)
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import compute_v1

pytestmark = pytest.mark.engine

WANTED = {"swarm-1": 8, "swarm-2": 5}
GHOST = "#!/bin/bash\necho the ghost was here\n"
AGAIN = "pilot-script-again.timer"
DONE = "pilot: done: swarm"
# Google's guest agents of 2025 and later bring a runner of another name.
_UNIT = "/etc/systemd/system/google-startup-scripts.service.d/runner.conf"
RENAME = (
    "set -e; cd /usr/bin; mv google_metadata_script_runner gce_metadata_script_runner;"
    f" printf '[Service]\\nExecStart=\\nExecStart=%s startup\\n'"
    f" /usr/bin/gce_metadata_script_runner >{_UNIT}; systemctl daemon-reload"
)
RENAME_BACK = (
    "set -e; cd /usr/bin; mv gce_metadata_script_runner google_metadata_script_runner;"
    f" rm {_UNIT}; systemctl daemon-reload"
)
WAITS = "google-guest-agent.service/start running"
# Of what monitoring names, what a healthy container may lack (docs/CONTRACT.md: absent where it
# cannot be had): it has no memory controller, is near no wall, and growth takes hours to know.
LACKING = {
    "pilot_memory_growth_bytes_per_hour",
    "pilot_agent_grown_bytes",
    "pilot_memory_slice_bytes",
    "pilot_wall_used_ratio",
}
# How long metadata server, bucket and registry are away. As short as shows that one waits for
# them; PILOT_TEST_AWAY_SECONDS=120 is two minutes each.
AWAY_SECONDS = float(os.environ.get("PILOT_TEST_AWAY_SECONDS", "0"))


@pytest.fixture(scope="module")
def fleet(booted: Boot) -> Iterator[Fleet]:
    # Nobody waits for a turn: by default swarm-2's comes after 120 s, as long as a test waits.
    settings = {"programStagger": 0}
    with booted("container", WANTED, 120 + AWAY_SECONDS, settings=settings) as made:
        yield made


def test_all_are_online_and_live_in_their_slice(fleet: Fleet) -> None:
    assert fleet.stats() == (13, 13)
    owners = {
        f"agent-{10000 + i}@{vm}.invalid" for vm, n in WANTED.items() for i in range(1, n + 1)
    }
    assert set(fleet.agents()) == owners
    for vm, count in WANTED.items():
        told = fleet.run(vm, "for p in $(pgrep -x pilot-daemon); do grep ^0: /proc/$p/cgroup; done")
        groups = {line.removeprefix("0::") for line in told.splitlines()}
        assert groups == {
            f"/pilot.slice/{OWN.cgroup(10000 + index)}" for index in range(1, count + 1)
        }
        # Nothing of what the script started is left in the unit that ran it.
        fleet.until_ended(vm)
        theirs = "cat /proc/[0-9]*/cgroup 2>/dev/null | grep -c google-startup-scripts"
        assert fleet.attempt(vm, theirs).stdout == "0\n"


def test_a_container_sets_its_own_numbers_and_none_of_its_hosts(fleet: Fleet) -> None:
    names = ("kernel.msgmni", "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports")
    found = fleet.run("swarm-1", f"sysctl --values {' '.join(names)}").splitlines()
    ports = "3000,9000-9001,9090-9100,10001-21483"
    assert [" ".join(value.split()) for value in found[1:]] == ["1024 65535", ports]
    host = [Path("/proc/sys", name.replace(".", "/")).read_text().split() for name in names]
    assert host[0] == [found[0]] != ["32"]
    assert host[1] != ["1024", "65535"]
    assert host[2] != [ports]
    # What it may not set is said once, and no error of the VM's.
    left = re.findall(r"left as they are: (.*)", fleet.console("swarm-1"))
    assert len(left) == 1
    assert "kernel.msgmni (Read-only file system)" in left[0]
    told = fleet.status("swarm-1")
    assert told is not None
    assert "kernel: " not in str(told["last_error"])


def test_a_reset_brings_back_the_same_agents(fleet: Fleet) -> None:
    before, runs = fleet.identities(), fleet.console("swarm-1").count(DONE)
    boots = {fleet.boot("swarm-1")}
    for again in (1, 2):
        fleet.act("swarm-1", "reset")
        moment = time.monotonic()
        fleet.heard_since(moment, "swarm-1")
        assert fleet.running("swarm-1") == WANTED["swarm-1"]
        assert fleet.identities() == before
        assert fleet.stats() == (13, 13)
        fleet.until_console("swarm-1", DONE, runs + again)
        boot, guard = fleet.run(
            "swarm-1", "cat /proc/sys/kernel/random/boot_id /run/pilot/guard"
        ).splitlines()
        assert guard.split()[0] == boot
        boots.add(boot)
    assert len(boots) == 3
    # Once a boot: whoever runs the script again has nothing to do.
    said_again = fleet.run("swarm-1", "google_metadata_script_runner startup 2>&1")
    assert "nothing to do: done in this boot, by this script" in said_again
    assert fleet.console("swarm-1").count(DONE) == runs + 2


def test_a_vm_without_a_role_is_untouched(fleet: Fleet) -> None:
    spec = {"pilot-spec": fleet.spec("swarm-1", name="stranger")}
    with fleet.beside("swarm-1", "stranger", spec):
        assert fleet.until_ended("stranger") == 0
        assert "pilot: " not in fleet.console("stranger")
        look = "find / -xdev -iname '*pilot*'; find /run /tmp -iname '*pilot*'; getent passwd pilot"
        assert fleet.attempt("stranger", look).stdout == ""
        blank = "cmp --bytes=$((1 << 20)) /dev/zero /dev/disk/by-id/google-pilot-state"
        assert fleet.attempt("stranger", blank).returncode == 0


def test_a_vm_born_with_a_script_of_its_own_never_runs_the_projects(fleet: Fleet) -> None:
    items = fleet.metadata("swarm-1") | {"startup-script": GHOST}
    items["pilot-spec"] = fleet.spec("swarm-1", name="ghost")
    with fleet.beside("swarm-1", "ghost", items):
        assert fleet.until_ended("ghost") == 0
        assert "startup-script: the ghost was here" in fleet.console("ghost")
        assert "pilot: " not in fleet.console("ghost")
        look = "ls -d /run/pilot /opt/pilot 2>/dev/null; pgrep -c pilot; true"
        assert fleet.run("ghost", look) == "0"
    assert fleet.stats() == (13, 13)


def test_a_script_behind_pulumis_back_hides_ours_until_pulumi_up(fleet: Fleet) -> None:
    before, runs = fleet.identities(), fleet.console("swarm-2").count(DONE)
    ended = len(fleet.ended("swarm-2"))
    fleet.set_metadata("swarm-2", fleet.metadata("swarm-2") | {"startup-script": GHOST})
    fleet.act("swarm-2", "reset")
    assert fleet.until_ended("swarm-2", ended + 1) == 0
    assert "startup-script: the ghost was here" in fleet.console("swarm-2")
    assert fleet.console("swarm-2").count(DONE) == runs
    assert fleet.running("swarm-2") == 0
    assert fleet.attempt("swarm-2", "ls -d /run/pilot").returncode != 0
    with said("pulumi up --refresh"):
        mended = fleet.project.up("--refresh").no_traceback()
    assert mended.code == 0, mended.text
    assert "startup-script" not in fleet.metadata("swarm-2")
    fleet.act("swarm-2", "reset")
    fleet.heard_since(time.monotonic(), "swarm-2")
    assert fleet.running("swarm-2") == WANTED["swarm-2"]
    assert fleet.identities() == before
    assert fleet.stats() == (13, 13)


@pytest.mark.parametrize(
    ("name", "uploaded", "why"),
    [
        ("corrupt", b"#!/bin/sh\ntouch /srv/it-ran\n", "is corrupt or was replaced"),
        ("missing", None, ": 404: there is no such object: has `pulumi up` uploaded"),
    ],
    ids=["corrupt", "missing"],
)
def test_a_binary_that_is_not_the_declared_one_stops_the_boot(
    fleet: Fleet, name: str, uploaded: bytes | None, why: str
) -> None:
    spec = json.loads(fleet.spec("swarm-1", name=name))
    sha256 = ("0" if uploaded is None else "f") * 64
    path = f"releases/{sha256}/pilot-daemon"
    spec["release"]["daemon"] = {"object": path, "sha256": sha256}
    if uploaded is not None:
        assert fleet.api.upload(spec["bucket"], path, uploaded).status == 200
    items = fleet.metadata("swarm-1") | {"pilot-spec": json.dumps(spec)}
    with fleet.beside("swarm-1", name, items):
        assert fleet.until_ended(name) == 1
        console = fleet.console(name)
        assert why in console
        assert 'FAILED in step "program, spec, release, units" with status 1' in console
        assert f"gs://{spec['bucket']}/{path}" in console
        assert DONE not in console
        left = "find /opt/pilot /srv/it-ran -type f -o -type l 2>/dev/null; true"
        assert fleet.run(name, left) == ""
        look = "cat /run/pilot/guard; pgrep -cx pilot-daemon; pgrep -cu 610; true"
        assert fleet.run(name, look).split() == ["working", "0", "0"]
        if uploaded is None:
            # Once as on an image whose guest agent has another runner.
            fleet.run(name, RENAME)
        _is_run_again(fleet, name)
    assert fleet.stats() == (13, 13)
    if uploaded is not None:
        place = f"/storage/v1/b/{spec['bucket']}/o/{quote(path, safe='')}"
        assert fleet.api.call("DELETE", place).status == 204


def test_another_program_that_googles_unit_names_runs_the_script(fleet: Fleet) -> None:
    vm, before = "swarm-1", fleet.identities()
    fleet.run(vm, RENAME)
    try:
        # pilot-node, when it finds that the script's work is not done.
        fleet.run(vm, "rm -f /run/pilot/attempt.json /run/pilot/guard")
        fleet.until_there(vm, "grep -q ' ' /run/pilot/guard", "the guard is set again")
        ran = fleet.run(vm, "journalctl --boot --output cat --unit pilot-script")
        assert DONE in ran
        # Who types what the messages say. Whether this run or pilot-node's comes first is open.
        ended = len(fleet.ended(vm))
        (typed,) = re.findall("`(.*)`", AGAIN_BY_HAND)
        fleet.run(vm, typed)
        assert fleet.until_ended(vm, ended + 1) == 0
        fleet.until_there(vm, "grep -q ' ' /run/pilot/guard", "the guard is set again")
    finally:
        fleet.run(vm, RENAME_BACK)
    assert fleet.identities() == before
    assert fleet.stats() == (13, 13)


def _is_run_again(fleet: Fleet, vm: str) -> None:
    """By a timer, and when that run fails by another; what it starts is started here at once."""
    assert fleet.run(vm, f"systemctl is-active {AGAIN}") == "active"
    first = fleet.run(vm, f"systemctl show -P ActiveEnterTimestampMonotonic {AGAIN}")
    fleet.run(vm, "systemctl start pilot-script-again.service")
    later = f'[ "$(systemctl show -P ActiveEnterTimestampMonotonic {AGAIN})" -gt {first} ]'
    fleet.until_there(vm, f"systemctl is-active {AGAIN} && {later}", "a timer of the next run")
    said = fleet.run(vm, "journalctl --boot --output cat | grep -c 'run again in 10 minutes'")
    assert int(said) == 2


def test_a_metadata_server_that_is_away_at_boot_only_delays(fleet: Fleet) -> None:
    before, runs = fleet.identities(), fleet.console("swarm-2").count(DONE)
    server = fleet.servers.of(f"projects/{CLOUD}/zones/{ZONE}/instances/swarm-2")
    length = len(fleet.console("swarm-2"))
    server.away()
    try:
        fleet.act("swarm-2", "reset")
        moment = time.monotonic()
        # Google's guest agent is the first to ask, and what runs the script waits for it.
        fleet.until(
            lambda: (
                WAITS in fleet.console("swarm-2")[length:]
                and time.monotonic() - moment >= AWAY_SECONDS
            ),
            "the console says what the boot waits for",
        )
        # Nobody can log in meanwhile: what is there waits, too.
        assert fleet.console("swarm-2").count(DONE) == runs
    finally:
        server.back()
    with said("from the metadata server's return to all agents"):
        fleet.heard_since(moment, "swarm-2")
    fleet.until_console("swarm-2", DONE, runs + 1)
    assert fleet.identities() == before
    assert fleet.stats() == (13, 13)


def test_a_registry_that_is_away_at_boot_only_delays(fleet: Fleet) -> None:
    before, runs = fleet.identities(), fleet.console("swarm-1").count(DONE)
    fleet.act(RENDEZVOUS, "stop")
    assert fleet.stats() is None
    fleet.act("swarm-1", "reset")
    moment = time.monotonic()
    # The script's work does not depend on it; agents are started, and none gets anywhere.
    fleet.until_console("swarm-1", DONE, runs + 1)
    fleet.until(lambda: fleet.running("swarm-1") == WANTED["swarm-1"], "agents are started")
    fleet.until(lambda: time.monotonic() - moment >= AWAY_SECONDS, "it is away long enough")
    assert fleet.attempt("swarm-1", "ls /var/lib/pilot/agents/*/daemon.sock").stdout == ""
    fleet.act(RENDEZVOUS, "start")
    moment = time.monotonic()
    with said("from the registry's return to all agents"):
        for vm in WANTED:
            fleet.heard_since(moment, vm)
    assert fleet.identities() == before
    assert fleet.stats() == (13, 13)


def test_a_new_boot_disk_keeps_identities_and_a_bucket_away_only_delays(fleet: Fleet) -> None:
    before, born = fleet.identities(), fleet.instance("swarm-2")["id"]
    urns = fleet.project.pulumi("stack", "-s", "lab", "--show-urns").text
    (urn,) = [
        word
        for word in urns.split()
        if word.endswith("compute/instance:Instance::swarm-2-vm") and word.startswith("urn:")
    ]
    with fleet.bucket_away() as refused:
        with said("pulumi up --replace"):
            done = fleet.project.up("--replace", urn).no_traceback()
        assert done.code == 0, done.text
        moment = time.monotonic()
        fleet.until_console("swarm-2", "503 Service Unavailable; again in")
        fleet.until(lambda: time.monotonic() - moment >= AWAY_SECONDS, "it is away long enough")
        assert refused
        assert DONE not in fleet.console("swarm-2")
        assert fleet.running("swarm-2") == 0
    fleet.heard_since(moment, "swarm-2")
    assert fleet.instance("swarm-2")["id"] != born
    assert "fetched and verified" in fleet.console("swarm-2"), "its boot disk is the old one"
    assert "formatting it" not in fleet.console("swarm-2")
    assert fleet.identities() == before
    assert fleet.stats() == (13, 13)


def test_a_swarm_vms_account_writes_nothing_to_the_bucket(fleet: Fleet) -> None:
    account_is_refused(fleet, "swarm-1", Random())


def test_the_cloud_is_what_the_program_says(fleet: Fleet) -> None:
    again = fleet.project.up("--expect-no-changes").no_traceback()
    assert again.code == 0, again.text
    drift = fleet.project.pulumi("refresh", "-s", "lab", "--yes", "--expect-no-changes")
    assert drift.code == 0, drift.text
    options = {"api_endpoint": fleet.serving.url}
    client: Any = compute_v1.InstancesClient(
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options=options,
    )
    listed = {each.name: each for each in client.list(project=CLOUD, zone=ZONE)}
    assert set(listed) == {RENDEZVOUS, *WANTED}
    for name, each in listed.items():
        assert each.status == "RUNNING"
        assert {item.key: item.value for item in each.metadata.items} == fleet.metadata(name)
        assert fleet.declared(name)["name"] == name


def test_agents_are_asked_for_their_connections(fleet: Fleet) -> None:
    for vm, count in WANTED.items():
        told = fleet.until_status(vm, lambda told: told["connections"]["sampled"] > 0, "asked")
        assert told["connections"]["sampled"] <= count
        assert told["connections"]["mean"] is not None


def test_every_metric_that_monitoring_names_is_served(fleet: Fleet) -> None:
    served: set[str] = set()

    def scraped() -> bool:
        for vm in ("swarm-1", RENDEZVOUS):
            text = fleet.run(vm, "curl -sS --fail http://127.0.0.1:9095/metrics")
            served.update(re.findall(r"^(pilot_[a-z0-9_]+)", text, re.MULTILINE))
        return metric_names() - LACKING <= served

    # Agents are asked for their memory and connections a while after they came up.
    fleet.until(scraped, "all metrics", lambda: f"missing: {sorted(metric_names() - served)}")


def test_a_change_of_agents_and_of_the_environment_is_live(fleet: Fleet) -> None:
    vm, numbers = "swarm-2", WANTED
    boot = fleet.boot(vm)

    def change(agents: int, environment: dict[str, str]) -> None:
        fleet.update(numbers | {vm: agents}, environment)
        with said(f"until {agents} agents of {vm} have {environment or 'no environment'}"):
            fleet.until(
                lambda: len(fleet.processes(vm)) == agents == _with(fleet, vm, environment),
                f"{agents} agents with {environment}",
                lambda: f"{fleet.running(vm)} run, {_with(fleet, vm, environment)} with it",
            )
            fleet.all_online()

    change(30, {})
    before = fleet.processes(vm)
    change(40, {})
    after = fleet.processes(vm)
    assert {port: after[port] for port in before} == before, "agents were touched"
    others = fleet.identities()
    change(40, {"GOGC": "60"})
    assert fleet.identities() == others
    assert fleet.boot(vm) == boot


def test_another_pilot_node_by_pulumi_up_touches_no_agent(fleet: Fleet) -> None:
    vms = [*fleet.wanted, RENDEZVOUS]

    def kept() -> dict[str, Any]:
        running = {vm: fleet.processes(vm) for vm in fleet.wanted}
        rendezvous = fleet.run(RENDEZVOUS, "systemctl show -P MainPID pilot-rendezvous.service")
        boots = {vm: fleet.boot(vm) for vm in vms}
        return {"agents": running, "rendezvous": rendezvous, "boots": boots}

    before = kept()
    old = {vm: (fleet.status(vm) or {})["node"] for vm in vms}
    file = fleet.project.folder / "startup" / "node" / "__init__.py"
    file.write_text(f"{file.read_text()}\n# Another one.\n")
    with said("pulumi up"):
        done = fleet.project.up().no_traceback()
    assert done.code == 0, done.text
    for vm in vms:
        told = fleet.until_status(
            vm,
            lambda told, vm=vm: (  # type: ignore[misc]
                told["script"]["state"] == "current"
                and told["node"]["script"] != old[vm]["script"]
                and told["phase"] in ("whole", "serving")
            ),
            "another script is applied",
        )
        assert told["node"]["started"] > old[vm]["started"]
        assert told["node"]["script"] == told["script"]["expected"]
    assert kept() == before


def test_a_bad_release_of_the_rendezvous_goes_back_and_loses_nobody(fleet: Fleet) -> None:
    identities = fleet.identities()
    running = {vm: fleet.processes(vm) for vm in fleet.wanted}
    before = fleet.declared(RENDEZVOUS)["release"]
    good = before["rendezvous"]["sha256"]
    release = fleet.release("9.9.9-exits", EXITS, "rendezvous")
    bad = release["rendezvous"]["sha256"]
    fleet.change_spec(RENDEZVOUS, release=release)
    try:
        with said("until a bad release of the rendezvous is back"):
            told = fleet.until_status(
                RENDEZVOUS,
                lambda told: (told["roll"]["state"], told["phase"]) == ("halted", "serving"),
                "a halted roll and a rendezvous that serves",
            )
        assert told["roll"]["sha256"] == bad
        assert "exit status 3" in told["roll"]["reason"]
        assert [each["sha256"] for each in told["roll"]["rejected"]] == [bad]
        assert told["release"]["sha256"] == good
        fleet.all_online()
        boot = told["boot"]
        fleet.act(RENDEZVOUS, "reset")
        told = fleet.until_status(
            RENDEZVOUS,
            lambda told: told["boot"] != boot and told["phase"] == "serving",
            "serving after a reset",
        )
        assert told["roll"]["state"] == "halted"
        assert told["release"]["sha256"] == good
    finally:
        fleet.change_spec(RENDEZVOUS, release=before)
    fleet.all_online()
    assert fleet.identities() == identities
    assert {vm: fleet.processes(vm) for vm in fleet.wanted} == running


def test_a_maintenance_that_stops_a_vm_drains_it_first_and_one_of_the_rendezvous_saves(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "NOTICE_SECONDS", 20.0)
    identities, vm = fleet.identities(), "swarm-1"
    fleet.act(vm, "setScheduling", {"onHostMaintenance": "TERMINATE", "automaticRestart": True})
    fleet.act(vm, "simulateMaintenanceEvent")
    fleet.until(lambda: fleet.running(vm) == 0, "drained")
    # The notice ends by itself; on Google the VM would have been stopped then.
    fleet.until(lambda: fleet.running(vm) == fleet.wanted[vm], "all back")
    fleet.act(vm, "setScheduling", {"onHostMaintenance": "MIGRATE", "automaticRestart": True})
    copies = (fleet.status(RENDEZVOUS) or {})["registry"]["newest_copy"] or ""
    fleet.act(RENDEZVOUS, "simulateMaintenanceEvent")
    banner = f"cat {STORE}/banner.txt"
    fleet.until(lambda: fleet.attempt(RENDEZVOUS, banner).stdout.strip() != "", "a banner")
    fleet.until_status(
        RENDEZVOUS,
        lambda told: bool((told["registry"]["newest_copy"] or "") > copies),
        "a copy before the maintenance",
    )
    fleet.all_online()
    assert fleet.identities() == identities


def _with(fleet: Fleet, vm: str, environment: dict[str, str]) -> int:
    """How many agents of a VM run with `environment`."""
    files = "$(pgrep -x pilot-daemon | sed 's,.*,/proc/&/environ,')"
    word = "|".join(f"^{name}={value}$" for name, value in environment.items()) or "^HOME="
    return int(fleet.attempt(vm, f"grep -lzsE '{word}' {files} | wc -l").stdout)


def test_destroyed_nothing_is_left(fleet: Fleet) -> None:
    with said("pulumi destroy"):
        done = fleet.project.pulumi("destroy", "-s", "lab", "--yes").no_traceback()
    assert done.code == 0, done.text
    compute = f"/compute/v1/projects/{CLOUD}"
    region = f"{compute}/regions/{ZONE.rsplit('-', 1)[0]}"
    zone = f"{compute}/zones/{ZONE}"
    collections = [
        *(f"{zone}/{each}" for each in ("instances", "disks")),
        *(f"{region}/{each}" for each in ("addresses", "subnetworks", "routers")),
        f"{region}/resourcePolicies",
        *(f"{compute}/global/{each}" for each in ("firewalls", "networks")),
        f"/storage/v1/b?project={CLOUD}",
    ]
    assert {each: fleet.api.get(each).get("items", []) for each in collections} == {
        each: [] for each in collections
    }
    items = fleet.api.get(compute)["commonInstanceMetadata"].get("items", [])
    assert [item for item in items if item["key"] == "startup-script"] == []
    assert list((fleet.state / "disks").iterdir()) == []
    assert list((fleet.state / "machines").iterdir()) == []
    assert fleet.serving.lab.unknown == []
    assert fleet.end() == set()
