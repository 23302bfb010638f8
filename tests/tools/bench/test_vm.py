"""A benchmark checks the machine before it begins."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from lab.machines import host
from tools.bench import vm


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Root on a machine where a process may have 20,000 files; the daemon's file."""
    monkeypatch.setattr(vm, "no_containers", str)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 20_000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(vm, "ROOT", tmp_path)
    monkeypatch.setattr(vm, "DAEMON", tmp_path / "pilot-daemon")
    vm.DAEMON.touch()
    return vm.DAEMON


def test_as_many_agents_as_one_registry_can_serve() -> None:
    vm.check(4500)
    vm.check(4950)
    with pytest.raises(
        vm.BenchError, match=r"20004 connections .* may open 20000 files: at most 4950"
    ):
        vm.check(4951)


def test_a_container_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(vm, "no_containers", host.no_containers)
    with pytest.raises(vm.BenchError, match="containers need root"):
        vm.check(10)


def test_without_the_daemon_there_is_nothing_to_start(machine: Path) -> None:
    machine.unlink()
    with pytest.raises(vm.BenchError, match="pilot-daemon is missing: `make artifacts`"):
        vm.check(10)
