"""Pulumi's own release: stand-ins for its installer that succeed, hang, fail, leave half a tree."""

from __future__ import annotations

import os
import select
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.tools.toolchain.fakes import ROOT, Machine
from tools.toolchain import build, commands, official, versions
from tools.toolchain.failure import Failure

# In the place of the SDK. Its engine fetches the provider, as Pulumi's does.
SDK = '''\
import os, pathlib, subprocess, sys, time

ENGINE = """#!/bin/sh
[ "$*" = "plugin install resource gcp v10.2.0" ] || exit 9
[ "$STANDIN" != no-provider ] || { echo "error: 503 from the download server" >&2; exit 255; }
mkdir -p "$PULUMI_HOME/plugins/resource-gcp-v10.2.0"
cp /bin/true "$PULUMI_HOME/plugins/resource-gcp-v10.2.0/pulumi-resource-gcp"
"""

class PulumiCommand:
    @classmethod
    def install(cls, root):
        how = os.environ["STANDIN"]
        folder = pathlib.Path(root) / "bin"
        folder.mkdir()
        if how == "fails":
            raise RuntimeError("curl: (28) Operation too slow")
        if how == "hangs":
            child = subprocess.Popen(["sleep", "1000"])
            pathlib.Path(os.environ["STANDIN_PID"]).write_text(str(child.pid))
            time.sleep(1000)
        for name in ("pulumi", "pulumi-language-python", "pulumi-language-python-exec"):
            (folder / name).write_text(ENGINE)
            (folder / name).chmod(0o755)
            if how == "half":
                break
            if how == "half-and-fails":
                sys.exit("tar: Unexpected EOF in archive")
'''


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toolchain's empty cache on a machine with the stand-in, and without a Pulumi."""
    (tmp_path / "sdk" / "pulumi").mkdir(parents=True)
    (tmp_path / "sdk" / "pulumi" / "__init__.py").touch()
    (tmp_path / "sdk" / "pulumi" / "automation.py").write_text(SDK)
    (tmp_path / "install.sh").touch()
    monkeypatch.setattr(official, "ADDRESS", f"file://{tmp_path}/install.sh")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "sdk"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("STANDIN", "succeeds")
    monkeypatch.setenv("STANDIN_PID", str(tmp_path / "pid"))
    monkeypatch.delenv("PILOT_TOOLCHAIN", raising=False)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    return build.cache_root(os.environ)


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The caches in which a build was asked for: it ends at once."""
    asked: list[Path] = []

    def built(root: Path) -> build.Built:
        asked.append(root)
        return build.locate(root)

    monkeypatch.setattr(build, "ensure_built", built)
    return asked


def ended(process: int) -> bool:
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 30)[0])
    finally:
        os.close(handle)


def fetch(cache: Path) -> Path:
    return official.fetch(cache, "3.272.0", Path(sys.executable))


def test_it_is_fetched_once_with_its_provider(
    cache: Path, no_build: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = commands.find_pulumi(tell=True)
    monkeypatch.setenv("STANDIN", "fails")
    monkeypatch.setattr(official, "ADDRESS", "http://127.0.0.1:9/")
    assert commands.find_pulumi(tell=False) == found
    assert no_build == []
    assert not found.built
    assert found.policy_pack == "policy"
    assert found.home is not None
    assert os.access(Path(found.home).parent / versions.PROVIDER.output, os.X_OK)
    assert Path(found.path).parent.name == "bin"
    assert list(cache.glob("scratch-*")) == []
    # A choice by hand wins over the fetched release.
    monkeypatch.setenv("PILOT_TOOLCHAIN", "source")
    assert commands.find_pulumi(tell=False).built


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("hangs", "no answer of its installer within 5 s"),
        ("fails", "its installer failed: RuntimeError: curl: (28) Operation too slow"),
        ("half-and-fails", "its installer failed: tar: Unexpected EOF in archive"),
        (
            "half",
            "it came without bin/pulumi-language-python, bin/pulumi-language-python-exec",
        ),
        ("no-provider", "the provider failed: error: 503 from the download server"),
    ],
)
def test_what_does_not_come_whole_leaves_nothing_and_is_built(
    cache: Path,
    no_build: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    why: str,
) -> None:
    monkeypatch.setenv("STANDIN", how)
    if how == "hangs":
        monkeypatch.setattr(official, "FETCH_SECONDS", 5.0)
    assert commands.find_pulumi(tell=False).built
    assert no_build == [cache]
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"Pulumi's own release does not come ({why}), so one is built from source."
    assert [path.name for path in cache.iterdir()] == ["lock"]
    if how == "hangs":
        assert ended(int(Path(os.environ["STANDIN_PID"]).read_text()))
    # By hand it is an error.
    if how != "hangs":
        monkeypatch.setenv("PILOT_TOOLCHAIN", "official")
        with pytest.raises(Failure, match="Pulumi's own release does not come: "):
            commands.find_pulumi(tell=False)
    # And what was left is in nobody's way.
    monkeypatch.setenv("STANDIN", "succeeds")
    assert fetch(cache).exists()


def test_an_address_that_does_not_answer_is_not_waited_for(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official, "LOOK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(official, "ADDRESS", f"http://127.0.0.1:{port}/install.sh")
        with pytest.raises(Failure, match=f"no answer of 127.0.0.1:{port} within"):
            fetch(cache)
    assert not cache.exists()


def test_nobody_looks_where_one_was_built(
    cache: Path, no_build: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    build.locate(cache).folder.mkdir(parents=True)
    monkeypatch.setattr(official, "fetch", lambda *_: pytest.fail("somebody looked"))
    assert commands.find_pulumi(tell=False).built


@pytest.mark.parametrize(
    ("choice", "status", "words"),
    [
        ("installed", 1, "No Pulumi is installed. (PILOT_TOOLCHAIN=installed)"),
        ("official", 1, "Pulumi's own release does not come: get.pulumi.com failed: "),
        ("source", 1, "Neither Pulumi nor Go is installed"),
        ("newest", 2, "PILOT_TOOLCHAIN is 'newest': choose installed, official, source."),
    ],
)
def test_a_choice_by_hand_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, choice: str, status: int, words: str
) -> None:
    machine = Machine(tmp_path / "machine")
    machine.environ["PILOT_TOOLCHAIN"] = choice
    result = machine.run("ensure")
    assert result.returncode == status
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(words)


def test_the_sdk_that_is_pinned_says_which_release() -> None:
    text = (ROOT / "requirements.txt").read_text()
    version = versions.version_of(official.sdk_version(text))
    assert version is not None
    assert version >= versions.MINIMUM
    assert f"pulumi=={official.sdk_version(text)}" in (ROOT / "requirements.in").read_text()
    with pytest.raises(Failure, match="does not pin pulumi"):
        official.sdk_version("pulumi-gcp==10.2.0")
