"""The running process' limit of descriptors (LimitNOFILE), which follows the number of agents."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from ..machine import proc
from ..pressure import kernel_limits
from ..setup import limits
from .context import LoopContext
from .process import UNIT

# Seconds between two looks.
_EVERY = 30.0


@dataclass(kw_only=True)
class DescriptorLimit:
    loop: LoopContext
    _refused: int = 0
    """A number that the host does not allow."""

    def raise_to_spec(self, pid: int) -> None:
        """Give the process `pid` as many descriptors as the spec's agents need, and say where it
        has nearly used its limit."""
        wanted = limits.rendezvous_descriptors(self.loop.spec)
        if not pid or not self.loop.is_due("descriptors", _EVERY):
            return
        try:
            hard = proc.most_descriptors(pid)
            if (proc.descriptors(pid) or 0) > hard * kernel_limits.NEAR:
                # Without the count, which differs each time and would make each message new.
                self.loop.fault(
                    f"LimitNOFILE of {UNIT}: more than {kernel_limits.NEAR:.0%} of {hard:.0f}: "
                    "it will exit when it is full; the spec's number of agents raises it"
                )
            if hard >= wanted or wanted == self._refused:
                return
            try:
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, wanted))
            except (PermissionError, ValueError) as error:
                # In a container the host decides, and will decide the same next time.
                self._refused = wanted
                text = f"the rendezvous has {hard} descriptors and cannot have {wanted}: {error}"
                # Half of `wanted` is what the agents hold (limits.py), the rest is room.
                (self.loop.say if hard >= wanted // 2 else self.loop.fault)(text)
            else:
                self.loop.say(f"the rendezvous may now have {wanted} descriptors")
        except ProcessLookupError:
            return
