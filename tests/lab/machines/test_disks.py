"""Disks of the drivers, without a machine that boots."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lab.machines.container import Container
from lab.machines.driver import Disk, MachineError
from lab.machines.places import Places
from lab.machines.qemu import Qemu


@pytest.mark.parametrize("driver", ["container", "qemu"])
def test_a_driver_keeps_what_is_on_a_disk(tmp_path: Path, driver: str) -> None:
    kind: Any = {"container": Container, "qemu": Qemu}[driver]
    # Without what checks that this machine can boot anything.
    made: Any = kind.__new__(kind)
    made._places = Places(tmp_path)
    disk = Disk(path="projects/p1/zones/z/disks/data", size_gb=1, image=None)
    made.create_disk(disk)
    with made._places.disk(disk.path, "raw").open("r+b") as stream:
        stream.seek(512 << 20)
        stream.write(b"identities")
    made.create_snapshot(disk, "projects/p1/global/snapshots/s")
    other = replace(
        disk, path=f"{disk.path}-2", size_gb=2, snapshot="projects/p1/global/snapshots/s"
    )
    made.create_disk(other)
    raw = made._places.disk(other.path, "raw")
    with raw.open("rb") as stream:
        stream.seek(512 << 20)
        assert stream.read(10) == b"identities"
    assert raw.stat().st_size == 2 << 30
    made.delete_snapshot("projects/p1/global/snapshots/s")
    made.delete_snapshot("projects/p1/global/snapshots/s")
    with pytest.raises(MachineError, match="without an image"):
        made.create_snapshot(replace(disk, image="i"), "projects/p1/global/snapshots/t")
