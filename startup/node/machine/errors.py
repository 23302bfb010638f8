"""What parts of this program say to each other."""

from __future__ import annotations


class NotReadyError(Exception):
    """This VM is not in a state in which an agent may be started."""
