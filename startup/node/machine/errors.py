"""Errors that several packages raise and handle."""

from __future__ import annotations


class NotReadyError(Exception):
    """This VM is not in a state in which an agent may be started."""
