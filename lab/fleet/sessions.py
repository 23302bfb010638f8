"""Commands in sessions of their own: interrupted in order, ended with all their processes.

The lock file names the session, so that the next command can end what a killed one left.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

from lab.fleet import checkout
from lab.fleet.errors import DemoError, until
from lab.machines import processes

_LAST_LINES = 40


def run(
    command: list[str],
    *,
    holding: IO[str] | None = None,
    log: Path | None = None,
    **environment: str,
) -> None:
    """Runs a command in the checkout; its output goes to the terminal, or to the end of `log`.

    The command also holds the file `holding` open, which names it while it runs. Ctrl-C asks it to
    end and waits for that; a second one cuts it off. What it has started ends with it.
    DemoError where it fails.
    """
    output = None if log is None else log.open("ab")
    before = 0 if output is None else output.tell()
    process = subprocess.Popen(
        command,
        stdout=output,
        stderr=output,
        cwd=checkout.ROOT,
        env={**os.environ, **environment},
        # It asks no question, and does not turn Ctrl-C of the terminal into a key.
        stdin=subprocess.DEVNULL,
        # So that it hears Ctrl-C once and from here, and its plugins can be found.
        start_new_session=True,
        pass_fds=() if holding is None else (holding.fileno(),),
    )
    try:
        if holding is not None:
            holding.truncate(0)
            holding.write(f"{process.pid} {os.getpid()}")
            holding.flush()
        try:
            _await_end(process)
        except KeyboardInterrupt:
            # Its whole group. It is not reaped yet, so the number is its own.
            processes.tell(-process.pid, signal.SIGINT)
            print(
                "\nlab: the current step is finishing; Ctrl-C again kills it",
                file=sys.stderr,
                flush=True,
            )
            _await_end(process)
            raise
    finally:
        processes.kill_session(process.pid)
        if holding is not None:
            holding.truncate(0)
        process.wait()
        if output is not None:
            output.close()
    if process.returncode:
        raise DemoError(_failed(command, log, before))


def _failed(command: list[str], log: Path | None, before: int) -> str:
    what = " ".join(command[1:])
    if log is None:
        return f"this failed (above is why): {what}"
    with log.open("rb") as file:
        file.seek(before)
        said = file.read().decode(errors="replace").strip().splitlines()
    last = "\n".join(f"    {line}" for line in said[-_LAST_LINES:])
    return f"this failed: {what}\n{last}\nAll that it said: {log}"


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Waits until a process has ended, and leaves it to be reaped: its id stays its own."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def take(lock: IO[str], *, cut: bool = False) -> bool:
    """Takes the lock; False where another process holds it.

    It names the session of a Pulumi that runs: plugins that have outlived theirs are ended. With
    `cut`, so is a Pulumi that has outlived the `make lab` that started it.
    """
    if _locks(lock):
        return True
    lock.seek(0)
    leader, _, starter = lock.read().partition(" ")
    if not leader.isdecimal():
        return False
    parent = processes.parent(int(leader))
    if parent is not None and not (cut and starter.isdecimal() and parent != int(starter)):
        return False
    processes.kill_session(int(leader))
    with suppress(DemoError):
        until(lambda: _locks(lock), 5, "somebody else holds it")
        return True
    return False


def _locks(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
