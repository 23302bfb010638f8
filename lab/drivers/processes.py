"""Processes that outlive the one that started them: known by what stands in their command line."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab.machines import MachineError

KILL_SECONDS: Final = 30.0  # a killed process that stays so long hangs in the kernel


def find(pid_file: Path, marker: str) -> int | None:
    """Return the id in `pid_file` if that process runs and has `marker` in its command line.

    The marker (a path that nobody else uses) tells it from a process that got its id later.
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


def kill(pid: int) -> None:
    """End a process without asking it, and wait for its end."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    if not wait(pid, KILL_SECONDS):
        message = f"process {pid} does not go away"
        raise MachineError(message)


class Watch:
    """Calls `ended(name)` when a watched process ends that nobody said would."""

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


def children(pid: int) -> list[int]:
    """Return the ids of a process' children."""
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_first(pid: int) -> bool:
    """Tell whether a process is the first one of a process namespace other than this one's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return False
    ids = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return len(ids) > 1 and ids[-1] == "1"
