"""The README's picture of `live`. To draw it again: `python -m tests.ops.live_picture`."""

from __future__ import annotations

import math
from typing import Final

from textual.pilot import Pilot

from ops.errors import UnreachableError
from tests.components.fleet import ROOT
from tests.ops import recorded

PICTURE: Final = ROOT / "docs" / "live.svg"
_SIZE: Final = (112, 24)
_EVERY: Final = 10.0  # seconds


def drawn() -> str:
    """The picture: a VM rolls a release, another fills after it was off, the API was away."""
    last = recorded.NOW
    before, away = last - 27 * _EVERY, last - 17 * _EVERY
    few = recorded.swarm_vm("swarm-3", 300, now=before)
    found = recorded.live(
        recorded.looks(
            [
                recorded.fleet(few, online=8300, now=before),
                UnreachableError("the VMs of project vulture-vision-cloud: nobody answers"),
                recorded.busy(9180),
            ],
            failed=away,
        )
    )
    online: list[int | None] = [9500] * 84
    online += [8300 + round(880 * math.sqrt(at / 27)) for at in range(27)]
    online[-17] = None
    taken = ""

    async def steps(pilot: Pilot[int]) -> None:
        nonlocal taken
        found.show(found.look_now())
        history = found.state.history
        history.clear()
        history.extend((last - _EVERY * (len(online) - at), many) for at, many in enumerate(online))
        found.show(found.look_now())
        await pilot.press("down", "down")
        await pilot.pause()
        taken = recorded.picture(found)

    recorded.drive(found, steps, size=_SIZE)
    return taken


if __name__ == "__main__":
    PICTURE.write_text(drawn(), encoding="utf-8")
