"""An image and disks that are empty files, for tests that boot nothing."""

from pathlib import Path

from lab.machines.driver import Machine
from lab.machines.image import Image
from lab.machines.places import Places


def fake_image(folder: Path) -> Image:
    folder.mkdir(parents=True)
    for name in ("root.raw", "vmlinuz", "initrd"):
        (folder / name).write_text(name)
    return Image(folder=folder, build="b1")


def put_disks(state: Path, vm: Machine, kind: str = "qcow2") -> None:
    kept = Places(state)
    for each in vm.disks:
        path = kept.disk(each.disk.path, kind if each.boot else "raw")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if kind == "tree" and each.boot else path.touch()
        if each.boot:
            kept.disk(each.disk.path, "json").write_text('{"build": "b1"}')
