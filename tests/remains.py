"""What a test leaves behind fails that test and no other: processes, sockets, open files, threads.

Python tells of an open file or a child that is not reaped when its object is collected, which may
be amid any later test. So all that a test held is let go of, and collected, before the test is
over (a collection costs nothing: what was there before is frozen). What a file's tests share is
looked for at the end of the file; there, too, processes that are no children of this one any more.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import traceback
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lab.machines import processes

# Inherited by all that a test starts, unless it is given another environment.
_MARK = f"TESTS_OF={os.getpid()}"
# What was told to end may be on its way.
_SECONDS = float(os.environ.get("TESTS_REMAINS_SECONDS", "60"))


_LIBRARIES = ("asyncio", "concurrent", "google", "grpc", "pulumi")
# pilot-node's fetcher ends with its process (startup/node/setup/release.py).
_ENDLESS = ("fetch",)

# Plugins of Pulumi's engine: its language host, its providers, its policies.
_PLUGINS = ("/pulumi-language-python ", "/pulumi-resource-", " pulumi.policy ")

# The file whose tests run, and the threads that there were before the first of them.
_file: Path | None = None
_threads: set[threading.Thread] = set()


def pytest_configure() -> None:
    name, _, value = _MARK.partition("=")
    os.environ[name] = value


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    global _file  # noqa: PLW0603 - pytest has one run, and hooks no other place
    if item.path != _file:
        _file = item.path
        gc.collect()
        # Modules are imported on demand, too, and never go.
        gc.freeze()
        _threads.clear()
        _threads.update(threading.enumerate())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    try:
        yield
    finally:
        _let_go(item)
    if nextitem is None or nextitem.path != item.path:
        _nothing_is_left(item.path.name)


def _nothing_is_left(file: str) -> None:
    """Of a file's tests no process and no thread goes on when its last test is over."""

    def threads() -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread not in _threads and thread.name not in _ENDLESS and not _is_a_librarys(thread)
        ]

    # An engine that was ended leaves them, and they look for it every five minutes only.
    processes.kill(*(pid for pid in _started() if any(each in _told(pid) for each in _PLUGINS)))
    if processes.until(lambda: not _started() and not threads(), _SECONDS):
        return
    left = [f"process {pid}: {_told(pid)}" for pid in _started()]
    left += [f"thread {thread.name}" for thread in threads()]
    processes.kill(*_started())
    pytest.fail(f"{file} leaves behind: {'; '.join(left)}", pytrace=False)


def _let_go(item: pytest.Item) -> None:
    """Collect what the test held; a warning that this gives is the test's."""
    # A failed test's variables hang on its exception, which pytest keeps for debuggers.
    for error in (getattr(sys, "last_value", None), sys.exception()):
        for each in _chain(error):
            for frame, _ in traceback.walk_tb(each.__traceback__):
                with suppress(RuntimeError):  # it runs
                    frame.clear()
                # Somebody may have looked: the copy that they were given follows.
                len(frame.f_locals)
    sys.last_type = sys.last_value = sys.last_traceback = None
    if isinstance(item, pytest.Function):
        item.funcargs.clear()
    gc.collect()
    # The plugin that makes failures of what finalizers say; its own turn has been.
    finalizers = item.config.pluginmanager.get_plugin("unraisableexception")
    assert finalizers is not None
    finalizers.pytest_runtest_teardown(item)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception and all that it came of, each once: they may be each other's cause."""
    found, ahead = list[BaseException](), [error]
    while ahead:
        each = ahead.pop()
        if each is None or any(each is one for one in found):
            continue
        found.append(each)
        ahead += [each.__cause__, each.__context__]
        ahead += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
    return found


def _is_a_librarys(thread: threading.Thread) -> bool:
    """Pulumi's SDK closes neither its event loop nor its channels, and with them no threads."""
    target = getattr(thread, "_target", None)
    return (getattr(target, "__module__", "") or "").split(".")[0] in _LIBRARIES


@pytest.fixture(autouse=True)
def _leaves_no_child() -> Iterator[None]:
    """No child of this process goes on, or is left to be reaped, when its test is over."""
    before = _children()
    yield
    if processes.until(lambda: not _children() - before, _SECONDS):
        return
    left = _children() - before
    told = "; ".join(f"process {pid}: {_told(pid)}" for pid in left)
    processes.kill(*left)
    for pid in left:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
    pytest.fail(f"the test leaves behind: {told}", pytrace=False)


def _children() -> set[int]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def _started() -> list[int]:
    """The processes that this one has started, and those that they have."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if _MARK.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def _told(pid: int) -> str:
    """The command of a process, and the test that has started it."""
    said = []
    for name, prefix in (("cmdline", b""), ("environ", b"PYTEST_CURRENT_TEST=")):
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            words = Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")
            said += [word.decode(errors="replace") for word in words if word.startswith(prefix)]
    return " ".join(said)[:500]
