"""What tests of every part may use."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

pytest_plugins = ["tests.remains"]

# A shell that is not interactive has its background ignore Ctrl-C, and whatever is started there as
# well; what a test interrupts has to hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing where other things run beside.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parent.parent
CHOSEN_BY_THE_USER = (
    "PULUMI_BACKEND_URL",
    "PULUMI_ACCESS_TOKEN",
    "PULUMI_STACK",
    "PULUMI_CONFIG_PASSPHRASE_FILE",
    "GOOGLE_CREDENTIALS",
    "GOOGLE_CLOUD_KEYFILE_JSON",
    "GCLOUD_KEYFILE_JSON",
    "GOOGLE_OAUTH_ACCESS_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    # What `make test` was given is for pytest.
    "ARGS",
    "STACK",
    "MAKEFLAGS",
)


# The files that take the longest, in their order: whoever begins one last waits for it alone.
_FIRST = ("vm/test_qemu.py", "vm/test_rows_container.py", "vm/")


T = TypeVar("T")


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, which leaves the thread without the loop that Pulumi's mocks look for."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)


# How a line begins in which a test prints what it measured.
_MEASURED = "measured: "


def measured(what: str) -> None:
    """Print what a test has measured; all of it is shown when the tests have ended."""
    print(f"{_MEASURED}{what}", flush=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    told = []
    for report in terminalreporter.getreports("passed"):
        file, _, test = report.nodeid.partition("::")
        told += [
            f"{Path(file).name}::{test}: {line.removeprefix(_MEASURED)}"
            for line in report.capstdout.splitlines()
            if report.when == "call" and line.startswith(_MEASURED)
        ]
    if told:
        terminalreporter.section("measured, not judged")
        for line in told:
            terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes the longest; all else stays in its order."""

    def rank(item: pytest.Item) -> int:
        place = item.path.as_posix().removeprefix(f"{ROOT}/tests/")
        return next((at for at, some in enumerate(_FIRST) if place.startswith(some)), len(_FIRST))

    items.sort(key=rank)


def pulumi_environment() -> dict[str, str]:
    """An environment with a working `pulumi` on PATH, no backend and no Google credentials.

    The first use may build the toolchain, which takes minutes; workers that run side by side
    wait for one build. Set PULUMI_BACKEND_URL to a folder of the test's own. Raises
    subprocess.CalledProcessError where there is none and none can be built.
    """
    toolchain = [
        sys.executable,
        str(ROOT / "tools" / "toolchain" / "toolchain.py"),
        "env",
        "--json",
    ]
    answer = subprocess.run(toolchain, stdout=subprocess.PIPE, text=True, check=True)
    environ = {**os.environ, **json.loads(answer.stdout), "PULUMI_CONFIG_PASSPHRASE": ""}
    return {name: text for name, text in environ.items() if name not in CHOSEN_BY_THE_USER}


@pytest.fixture(scope="session")
def pulumi_env() -> dict[str, str]:
    """`pulumi_environment`."""
    try:
        return pulumi_environment()
    except subprocess.CalledProcessError:
        pytest.fail("tools/toolchain/toolchain.py env found no Pulumi and could not build one")
