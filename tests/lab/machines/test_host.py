"""Packages that drivers need on this machine."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.machines import host
from lab.machines.driver import MachineError


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_PLACES", ())
    assert "qemu-system-x86" in host.missing_packages("qemu", root=True)
    assert "systemd-container" not in host.missing_packages("qemu", root=True)
    assert "systemd-container" in host.missing_packages("container", root=True)
    assert "uidmap" in host.missing_packages("qemu", root=False)
    assert "uidmap" not in host.missing_packages("qemu", root=True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    line = "as root, type: apt-get update && apt-get install --yes .*qemu-utils"
    with pytest.raises(MachineError, match=line):
        host.ensure_packages("qemu")
    for name in ("mmdebstrap", "mke2fs", "truncate", "tar", "ssh-keygen", "newuidmap"):
        (tmp_path / name).symlink_to("/bin/true")
    for name in ("qemu-system-x86_64", "qemu-img"):
        (tmp_path / name).symlink_to("/bin/true")
    assert host.ensure_packages("qemu") == []


APT = """#!/bin/sh
mkdir "$HERE/locked" || { echo "E: Could not get lock" >&2; exit 100; }
sleep 0.3
[ "$1" = update ] || for each in qemu-system-x86_64 qemu-img; do ln -s /bin/true "$HERE/$each"; done
rmdir "$HERE/locked"
"""


def test_packages_are_installed_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "_PLACES", ())
    monkeypatch.setattr(host, "_TURN", tmp_path / "turn")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_IMAGE", {})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HERE", str(tmp_path))
    for name in ("sh", "sleep", "ln", "mkdir", "rmdir"):
        (tmp_path / name).symlink_to(f"/bin/{name}")
    (tmp_path / "apt-get").write_text(APT)
    (tmp_path / "apt-get").chmod(0o755)
    with ThreadPoolExecutor() as pool:
        installed = [*pool.map(host.ensure_packages, ["qemu"] * 3)]
    assert sorted(installed) == [[], [], ["qemu-system-x86", "qemu-utils"]]
