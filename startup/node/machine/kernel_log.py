"""The kernel's log, from /dev/kmsg."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .paths import Paths


@dataclass(kw_only=True)
class KernelLog:
    """The kernel's lines since the last look, none where /dev/kmsg cannot be read (a container).
    Reading never waits."""

    paths: Paths
    _handle: int | None = field(default=None)

    def lines(self) -> tuple[str, ...]:
        """The lines since the last call; none at the first call."""
        if self._handle is None:
            try:
                flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                self._handle = os.open(self.paths.at("/dev/kmsg"), flags)
                os.lseek(self._handle, 0, os.SEEK_END)
            except OSError:
                self.close()
            return ()
        found = []
        # One record per read. Bounded: the kernel may write faster than this reads.
        for _ in range(10_000):
            try:
                record = os.read(self._handle, 8192)
            except BrokenPipeError:
                # Records were overwritten. The next read returns the oldest that is left.
                continue
            except OSError:
                break
            if not record:
                break
            found.append(kernel_text(record))
        return tuple(found)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None


def kernel_text(record: bytes) -> str:
    """The text of a record of /dev/kmsg: `priority,number,time,flag;text`, then lines of tags."""
    return record.partition(b"\n")[0].partition(b";")[2].decode(errors="replace")
