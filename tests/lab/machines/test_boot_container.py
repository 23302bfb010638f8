"""Two containers on one network, from their first start until nothing is left of them."""

import subprocess
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lab.machines.container import Container
from lab.machines.driver import MachineError
from tests.lab.machines.site import (
    ASK_UDP,
    SCRIPT,
    SOON,
    boot_count,
    machine,
    make_disks,
    ssh,
    wait_until,
)
from tests.lab.machines.stub import Stub

pytestmark = pytest.mark.engine


class _Api(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"the lab's API"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def test_two_containers_live(
    tmp_path: Path, image_cache: Path, programs: Callable[[str], None], nothing_left: None
) -> None:
    programs("container")
    one, two = machine(1, memory_mb=300), machine(2)
    stubs = {vm.path: Stub(name=vm.hostname.partition(".")[0], script=SCRIPT) for vm in (one, two)}
    stopped: list[str] = []
    api = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    serving = threading.Thread(target=api.serve_forever, args=(0.05,))
    serving.start()

    def lab() -> Container:
        return Container(
            tmp_path,
            metadata_endpoint=lambda vm: stubs[vm.path].endpoint,
            api_port=api.server_address[1],
            cache=image_cache,
            stopped=stopped.append,
        )

    driver = lab()
    try:
        for vm in (one, two):
            make_disks(driver, vm)
            driver.start(vm)
            driver.start(vm)
        for vm in (one, two):
            boot_count(stubs[vm.path], 1)
        first = ssh(driver, one, "cat /proc/sys/kernel/random/boot_id")
        assert ssh(driver, one, "systemctl is-system-running --wait") == "running"
        assert ssh(driver, one, "hostname -f; readlink -e /dev/disk/by-id/google-data") == (
            "vm-1.z.c.p.internal\n/dev/sdb"
        )

        # The network: each other by TCP and UDP, the metadata server by who asks, the API.
        for vm, other, name in ((one, two, "vm-2"), (two, one, "vm-1")):
            address = other.nics[0].address
            assert ssh(driver, vm, f"curl -sS http://{address}:8000/name") == name
            assert ssh(driver, vm, f"curl -sS http://{address}:8000/metadata-name") == name
            assert ssh(driver, vm, ASK_UDP.format(address=address)) == f"{name} got hi"
        port = api.server_address[1]
        assert ssh(driver, one, f"curl -sS http://169.254.169.1:{port}/") == "the lab's API"
        denied = "curl -s --max-time 3 -o /dev/null http://169.254.169.254/computeMetadata/v1/"
        unit = "systemd-run --quiet --wait --pipe -p IPAddressDeny=169.254.169.254"
        status = ssh(driver, one, f"{denied}; echo $?; {unit} {denied} || echo $?")
        assert status.splitlines() == ["0", "28"], "IPAddressDeny= of a unit has no effect"

        # A forward, and another process of the lab that finds all that.
        port = driver.forward(two, 8000)
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/name").read() == b"vm-2\n"
        driver.close()
        driver = lab()
        assert [driver.is_running(vm) for vm in (one, two)] == [True, True]
        assert driver.forward(two, 8000) == port
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/name").read() == b"vm-2\n"

        # A reset, and a reboot from inside: disks keep what they have, the other does not notice.
        ssh(driver, one, "echo kept >/srv/kept")
        driver.reset(one)
        boot_count(stubs[one.path], 2)
        assert ssh(driver, one, "cat /srv/kept; wc -l </mnt/data/boots") == "kept\n2"
        assert ssh(driver, one, "cat /proc/sys/kernel/random/boot_id") != first
        ssh(driver, one, f"{SOON} systemctl reboot")
        boot_count(stubs[one.path], 3)
        address = two.nics[0].address
        assert ssh(driver, one, f"curl -sS http://{address}:8000/name") == "vm-2"
        assert ssh(driver, two, "wc -l </mnt/data/boots") == "1"

        # Its memory is its own: what takes more is ended, and nothing else is.
        if "memory is limited" in driver.description:
            unit = "systemd-run --quiet --wait -p OOMScoreAdjust=1000 python3 -c"
            assert ssh(driver, one, f"{unit} 'bytearray(50 << 20)' && echo fits") == "fits"
            assert ssh(driver, one, f"{unit} 'bytearray(500 << 20)' || echo ended") == "ended"
        assert stopped == []

        # One powers itself off, the other is asked to.
        ssh(driver, one, f"{SOON} systemctl poweroff")
        wait_until(lambda: stopped == [one.path], "the lab hears of the power-off")
        assert driver.is_running(one) is False
        driver.stop(two)
        driver.stop(two)
        assert driver.is_running(two) is False
        assert stopped == [one.path]
        console = driver.serial_output(one).decode()
        assert console.count("startup-script: hello from vm-1.z.c.p.internal") == 3
        assert "Reached target" in driver.serial_output(two).decode().rsplit("the last line", 1)[1]
        driver.delete(one)
        for each in one.disks:
            driver.delete_disk(each.disk)
        assert sorted(path.name for path in (tmp_path / "machines").iterdir()) == ["p_z_vm-2"]
    except BaseException:
        for vm in (one, two):
            print(driver.serial_output(vm).decode(errors="replace"))
        raise
    finally:
        driver.shutdown()
        for stub in stubs.values():
            stub.close()
        api.shutdown()
        serving.join()
        api.server_close()


def test_a_lab_that_is_shut_down_while_they_run_leaves_nothing(
    tmp_path: Path, image_cache: Path, programs: Callable[[str], None], nothing_left: None
) -> None:
    programs("container")
    vm = machine(3)
    stub = Stub(name="vm-3", script=SCRIPT)
    endpoint = stub.endpoint
    driver = Container(
        tmp_path, metadata_endpoint=lambda _: endpoint, api_port=1, cache=image_cache
    )
    try:
        make_disks(driver, vm)
        driver.start(vm)  # it is still booting when its power goes
        # As a launcher leaves it that is killed before it has opened what it attached.
        for disk in (tmp_path / "disks").glob("*.raw"):
            subprocess.run(["losetup", "--find", disk], check=True)
    finally:
        # As another process does it that was not there when they were started.
        driver.close()
        other = Container(
            tmp_path, metadata_endpoint=lambda _: endpoint, api_port=1, cache=image_cache
        )
        other.shutdown()
        stub.close()
    assert other.is_running(vm) is False


def test_a_container_that_does_not_start_says_why(
    tmp_path: Path, image_cache: Path, programs: Callable[[str], None], nothing_left: None
) -> None:
    programs("container")
    vm = machine(4)
    driver = Container(
        tmp_path, metadata_endpoint=lambda _: ("127.0.0.1", 1), api_port=1, cache=image_cache
    )
    try:
        make_disks(driver, vm)
        (tmp_path / "disks" / "p_z_vm-4.tree" / "work").rmdir()
        with pytest.raises(MachineError, match=r"does not start: mount: "):
            driver.start(vm)
        assert driver.is_running(vm) is False
    finally:
        driver.shutdown()
