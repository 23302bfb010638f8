"""Failures of a command: one sentence for the operator, never a traceback."""

from __future__ import annotations

import re
from pathlib import Path


class Failure(Exception):  # noqa: N818 - a sentence, not an error of the program
    """A sentence that says what is wrong and what to do; the program exits with `status`."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


INSTALL_PULUMI = "install Pulumi 3.259 or newer (https://www.pulumi.com/docs/install/)"

_TOO_OLD = re.compile(
    r"requires go >= ?(?P<want>[\d.]+).*|invalid go version .*|unknown directive: \S+|"
    r"note: module requires Go (?P<note>[\d.]+)"
)
_DISK = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_TAMPERED = re.compile(r"checksum mismatch|SECURITY ERROR", re.IGNORECASE)
_MEMORY = re.compile(r"signal: killed|cannot allocate memory|out of memory", re.IGNORECASE)
_NETWORK = re.compile(
    r"dial tcp|no such host|connection (?:refused|reset)|i/o timeout|TLS handshake timeout|"
    r"proxyconnect|network is unreachable|name resolution|lookup disabled by GOPROXY|x509:|"
    r"context deadline exceeded|reading https?://\S+: [45]\d\d |unexpected EOF|"
    r"git ls-remote|unrecognized import path",
    re.IGNORECASE,
)


def explain(output: str, *, log: Path, title: str, proxy: str) -> str:
    """A sentence for a failed Go command, from its output.

    The order matters: a full disk also breaks downloads, and a refused download also ends in a
    missing checksum.
    """
    if _DISK.search(output):
        return (
            f"The disk filled up while building {title}: free some space, or point GOCACHE, "
            f"GOMODCACHE, TMPDIR and XDG_CACHE_HOME at a disk with room, and run this again "
            f"(finished parts are kept). Log: {log}"
        )
    if _TOO_OLD.search(output):
        return (
            f"This Go is too old for {title}: install the Go that tools/toolchain/*/go.mod "
            f"names or a newer one (https://go.dev/dl/), or {INSTALL_PULUMI}. Log: {log}"
        )
    if _NETWORK.search(output):
        return (
            f"The sources of {title} could not be fetched from the Go module proxy "
            f"(GOPROXY={proxy}): set GOPROXY to one that this network reaches, or "
            f"{INSTALL_PULUMI}. Log: {log}"
        )
    if _TAMPERED.search(output):
        return (
            f"The sources of {title} are not the ones that tools/toolchain/ pins by checksum, so "
            f"nothing was built from them: see which proxy served them (GOPROXY={proxy}) and "
            f"`go clean -modcache`. Log: {log}"
        )
    if _MEMORY.search(output):
        return (
            f"The compiler ran out of memory while building {title}: run this again with "
            f"GOFLAGS=-p=1 or on a machine with more, or {INSTALL_PULUMI}. Log: {log}"
        )
    tail = "\n".join(f"    {line}" for line in output.strip().splitlines()[-20:])
    return f"Building {title} failed. Go said last:\n{tail}\nThe whole log: {log}"
