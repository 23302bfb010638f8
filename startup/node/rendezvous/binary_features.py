"""Finds the features that a rendezvous binary lacks: it takes any `-config`, and says nothing of
flags that it does not know."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ..desired.spec import Binary
from ..machine.paths import Paths
from ..setup import release
from . import access_tokens

# A word in each binary that supports a banner, and one in every binary.
_BANNER: Final = "banner.txt"
_ANY: Final = "registry-addr"


class BinaryFeatures:
    """The features of each release, found once per release."""

    def __init__(self) -> None:
        self._words: dict[str, frozenset[str] | None] = {}

    def unsupported(
        self, paths: Paths, binary: Binary, tokens: Iterable[str], *, banner: bool
    ) -> list[str]:
        """Those of `tokens` and the `banner` that `binary` does not know, by their names in the
        status; none where that cannot be told."""
        if binary.sha256 not in self._words:
            self._words[binary.sha256] = words_of(release.path_of(binary, paths.opt))
        known = self._words[binary.sha256]
        if known is None:
            return []
        wanted = {f"tokens.{what}": access_tokens.FLAGS[what] for what in tokens}
        if banner:
            wanted["banner"] = _BANNER
        return sorted(name for name, word in wanted.items() if word not in known)


def words_of(binary: Path) -> frozenset[str] | None:
    """The flags and files that are named in the binary's bytes. None where it is not there, or
    packed. It is read, not run: run from here, it would be outside of its unit's sandbox."""
    try:
        with (
            binary.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as text,
        ):
            words = (_ANY, _BANNER, *access_tokens.FLAGS.values())
            found = frozenset(word for word in words if text.find(word.encode()) >= 0)
    except (OSError, ValueError):
        return None
    return found if _ANY in found else None
