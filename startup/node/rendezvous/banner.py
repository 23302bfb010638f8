"""The banner that the rendezvous shows on its dashboard."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..machine import files, http_client
from ..machine.retry import FinalError, TemporaryError
from ..machine.user import UID
from .context import LoopContext

RESTARTING: Final = "Restarting; agents come back by themselves."
MAINTENANCE: Final = "Host maintenance; agents come back by themselves."
# Seconds between two attempts at one text.
_EVERY = 30.0


@dataclass(kw_only=True)
class Banner:
    loop: LoopContext
    _shown: tuple[str, str] | None = None
    """The text and the admin token that it was set with."""

    def show(self, text: str, token: str, *, active: bool) -> None:
        """Show `text` through the dashboard where the process is `active` and there is an admin
        token, else through the file: upstream reads that at its start only. Raises OSError."""
        if self._shown == (text, token):
            return
        if not self.loop.is_due(f"banner {text}", _EVERY):
            return
        if token and active:
            url = f"http://127.0.0.1:{self.loop.spec.dashboard_port}/api/banner"
            headers = {"X-Admin-Token": token, "Content-Type": "text/plain"}
            try:
                with http_client.request("PUT", url, headers, text.encode(), timeout=5.0) as answer:
                    if answer.status == 200:
                        self._shown = (text, token)
                        return
            except (TemporaryError, FinalError):
                return
        self.set(text, token)

    def forget(self) -> None:
        """A new process shows what its file says."""
        self._shown = None

    def set(self, text: str, token: str) -> None:
        """Set what a new process shows from its start on. Raises OSError."""
        self._write(text)
        self._shown = (text, token)

    def _write(self, text: str) -> None:
        """`banner.txt`, owned by the rendezvous, which replaces it. Raises OSError."""
        folder = self.loop.paths.registry
        path = folder / "banner.txt"
        if not text:
            path.unlink(missing_ok=True)
            return
        files.sweep(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                if os.geteuid() == 0:
                    os.fchown(stream.fileno(), UID, UID)
                os.fchmod(stream.fileno(), 0o644)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
