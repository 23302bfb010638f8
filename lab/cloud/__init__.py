"""A Compute Engine on this machine: the API, for programs written against Google's.

It is a local stand-in: it answers in Google's shapes what a Pulumi program, the official Python
client and an operator ask of compute, storage, secrets, IAM and monitoring, keeps its state in
a directory, and hands machines to a driver (`lab.machines.driver`).
"""

from typing import Any, Final

Json = dict[str, Any]
"""A JSON object, as a client sends it or reads it."""

NAME: Final = "local stand-in for Compute Engine"
"""What the `Server:` header, the log and error messages call this program."""
