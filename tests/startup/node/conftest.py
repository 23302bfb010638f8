"""A rendezvous VM that is a folder, and a state disk that refuses writes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.startup.node.rendezvous.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    found = Fleet(tmp_path)
    try:
        yield found
    finally:
        found.unit.end()


@pytest.fixture
def refusing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, nothing is written to the state disk."""

    def refuse() -> None:
        real_make, real_unlink = tempfile.mkstemp, Path.unlink

        def make(*args: Any, **named: Any) -> Any:
            if Path(named["dir"]).is_relative_to(fleet.paths.state):
                raise OSError(28, "No space left on device", str(named["dir"]))
            return real_make(*args, **named)

        def unlink(path: Path, *, missing_ok: bool = False) -> None:
            if path.is_relative_to(fleet.paths.state):
                raise OSError(30, "Read-only file system", str(path))
            real_unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(tempfile, "mkstemp", make)
        monkeypatch.setattr(Path, "unlink", unlink)

    return refuse
