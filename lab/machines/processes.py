"""Processes that outlive the one that started them: found by their command line, ended one way.

A process may be gone already when it is to be ended. That is no error anywhere here. Every
function that ends a process returns once the process is gone.
"""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from lab.machines.driver import MachineError

KILL_SECONDS: Final = 30.0  # a killed process that stays longer hangs in the kernel
END_SECONDS: Final = 10.0  # that a process has to end when asked to

Child = TypeVar("Child", bound="subprocess.Popen[Any]")


def find(pid_file: Path, marker: str) -> int | None:
    """Return the id in `pid_file` if that process runs and has `marker` in its command line.

    The marker (a path of this lab) tells it from another process that got its id later.
    """
    try:
        pid = int(pid_file.read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if marker.encode() in command else None


def having(marker: str) -> list[int]:
    """Return the ids of the processes that have `marker` in their command line."""
    found = []
    # Not by Path.glob: it looks at each file before, and raises where a process ends meanwhile.
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if marker.encode() in command:
            found.append(int(folder.name))
    return found


def wait(pid: int, seconds: float) -> bool:
    """Wait until a process has ended, for at most `seconds`; tell whether it has."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))
    finally:
        os.close(watched)


def tell(pid: int, number: int) -> bool:
    """Send a signal to a process; False where it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill(*pids: int) -> None:
    """End processes without asking them, and wait until all are gone.

    The end of one may end another. All are looked up before the first is killed, so that no id
    belongs to another process by then.
    """
    watched: dict[int, int] = {}
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                watched[pid] = os.pidfd_open(pid)
        for each in watched.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(each, signal.SIGKILL)
        poll = select.poll()
        end = time.monotonic() + KILL_SECONDS
        for pid, each in watched.items():
            poll.register(each, select.POLLIN)
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                message = (
                    f"process {pid} was killed and is still there after {KILL_SECONDS:.0f} s. If "
                    "this machine is very busy, type the same command again"
                )
                raise MachineError(message)
            poll.unregister(each)
    finally:
        for each in watched.values():
            os.close(each)


def stop(pid: int, seconds: float = END_SECONDS) -> None:
    """Ask a process to end (SIGTERM); kill it where it has not within `seconds`."""
    if tell(pid, signal.SIGTERM) and not wait(pid, seconds):
        kill(pid)


def end(
    child: "subprocess.Popen[Any]", number: int = signal.SIGTERM, seconds: float = END_SECONDS
) -> int:
    """Send `number` to a child of this process, kill it where it has not ended within `seconds`,
    reap it and close its pipes; return its exit status."""
    try:
        child.send_signal(number)
        try:
            return child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait(KILL_SECONDS)
    finally:
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                # What was never read from the other end.
                with suppress(OSError):
                    pipe.close()


@contextmanager
def ending(child: Child) -> Iterator[Child]:
    """Kill a child when the block ends, however it ends; one that has ended by then is reaped."""
    try:
        yield child
    finally:
        end(child, signal.SIGKILL)


def kill_session(leader: int) -> None:
    """Kill what is in the session of `leader`, which may be gone."""
    members = []
    for folder in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            if (
                os.getsid(pid := int(folder.name)) == leader
                # Only root can end another user's process.
                and os.geteuid() in (0, folder.stat().st_uid)
            ):
                members.append(pid)
    kill(*members)


def kill_container(launcher: int) -> None:
    """Kill a container: its launcher, what that started, and the first process in it, with which
    all of its processes end, and its mounts go."""
    first = first_in(launcher)
    kill(launcher, *children(launcher), *([] if first is None else [first]))


class ProcessWatch:
    """Calls `ended(name)` when a watched process ends unexpectedly."""

    def __init__(self, ended: Callable[[str], None]) -> None:
        """Call `ended` from a thread of this watch."""
        self._ended = ended
        self._watched: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def add(self, name: str, pid: int) -> None:
        """Watch a process; one that is gone already counts as ended."""
        with self._changed:
            self._watched[name] = pid
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()

    def forget(self, name: str) -> None:
        """Watch it no longer: its end is wanted."""
        with self._changed:
            self._watched.pop(name, None)

    def close(self) -> None:
        """Watch nothing any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, timeout=0.5):
                    return
                over = [name for name, pid in self._watched.items() if wait(pid, 0)]
                for name in over:
                    del self._watched[name]
            for name in over:
                self._ended(name)


def until(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Wait until `condition` holds, for at most `seconds`; tell whether it does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(interval)
    return True


def parent(pid: int) -> int | None:
    """Return the id of a process' parent; None where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid:"))


def children(pid: int) -> list[int]:
    """Return the ids of a process' children."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def first_in(launcher: int) -> int | None:
    """Return the first process of a container: the child of the child of its launcher."""
    for child in children(launcher):
        for grandchild in children(child):
            if _is_first(grandchild):
                return grandchild
    return None


def _is_first(pid: int) -> bool:
    """Tell whether a process is the first one of a process namespace other than this one's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    ids = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(ids) > 1 and ids[-1] == "1"
