"""The files of a lab's drivers."""

import shutil
import socket
from contextlib import closing
from pathlib import Path

from lab.machines import places
from lab.machines.places import Places, slug
from tests.lab.machines.prepared import fake_image
from tests.lab.machines.site import machine


def test_names_of_resources_do_not_meet() -> None:
    assert slug("projects/p/zones/z/disks/a") == "p_z_a"
    assert slug("projects/p/zones/z-a/disks/b") != slug("projects/p/zones/z/disks/a-b")


def test_a_machine_is_read_as_it_was_written(tmp_path: Path) -> None:
    kept = Places(tmp_path)
    kept.record(machine(2))
    kept.record(machine(1))
    assert list(kept.recorded()) == [machine(1), machine(2)]


def test_a_disk_grows_and_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "disks" / "d.raw"
    places.make_raw(path, 1)
    with path.open("r+b") as file:
        file.write(b"data")
    places.make_raw(path, 3)
    places.make_raw(path, 2)
    assert path.stat().st_size == 3 * places.GIB
    with path.open("rb") as file:
        assert file.read(4) == b"data"
    assert path.stat().st_blocks * 512 < 1024**2


def test_a_labs_image_outlives_the_cache(tmp_path: Path) -> None:
    cached = fake_image(tmp_path / "cache")
    kept = Places(tmp_path / "state").keep_image(cached)
    assert kept.name == "b1"
    shutil.rmtree(tmp_path / "cache")
    assert (kept / "root.raw").read_text() == "root.raw"
    assert Places(tmp_path / "state").keep_image(cached) == kept
    assert [each.name for each in kept.parent.iterdir()] == ["b1"]


def test_a_taken_port_is_another_one() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert places.free_port(port) != port
    assert places.free_port(port) == port


def test_the_key_is_made_once(tmp_path: Path) -> None:
    key = Places(tmp_path).ssh_key()
    text = key.read_text()
    assert key.stat().st_mode & 0o077 == 0
    assert Places(tmp_path).ssh_key().read_text() == text
    assert key.with_suffix(".pub").read_text().startswith("ssh-ed25519 ")
