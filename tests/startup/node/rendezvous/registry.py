"""Registry files for tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from lab.standin.state import Node, State, sealed
from startup.node.machine.paths import Paths
from startup.node.rendezvous import registry_file

NOW = 1_790_000_000.0


def state(count: int, *, requests: int = 0) -> State:
    found = State(started=NOW)
    for number in range(1, count + 1):
        found.add(
            Node(
                id=number,
                key=f"{number:042}A=",
                owner=f'agent-{number}"\\ü@swarm-1.invalid',
                address=f"10.10.0.2:{10000 + number}",
                version="1.18.0",
                created=NOW,
                last_seen=NOW + number,
            )
        )
    found.total_requests = requests
    return found


def snapshot(count: int, **more: int) -> bytes:
    return sealed(state(count, **more).snapshot())


def unsealed(count: int, *, gone: int = 0, requests: int = 0) -> bytes:
    """A file of the rendezvous of February 2026 (docs/FACTS.md): of version 0, without a seal;
    `gone` nodes were silent for 3 minutes, so it knows their keys alone."""
    found = state(count, requests=requests)
    found.reap(NOW + gone + 1)
    content = found.snapshot()
    assert json.loads(content)["pub_key_idx"].keys() == {f"{n:042}A=" for n in range(1, count + 1)}
    return content.replace(b'"version":1', b'"version":0', 1)


def sealed_after(count: int, gone: int) -> bytes:
    found = state(count)
    found.reap(NOW + gone + 1)
    return sealed(found.snapshot())


def said(lines: list[str]) -> Callable[[str], None]:
    return lines.append


def put(paths: Paths, content: bytes, *, at: float = NOW) -> Path:
    """As the rendezvous does it: another file each time, with a time of its own."""
    path = paths.registry / registry_file.NAME
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    os.utime(temporary, (at, at))
    temporary.replace(path)
    return path
