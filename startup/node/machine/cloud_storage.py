"""What Cloud Storage's answers mean."""

from __future__ import annotations

from . import http_client


def what_is_gone(answer: http_client.HttpAnswer) -> str:
    """What Cloud Storage says is not there: `bucket`, `object`, or "" where it says neither.

    In its own words, JSON or plain: anybody answers 404, and an object that is gone ends a hold or
    makes a release lost. Reads the body of a 404.
    """
    if answer.status != 404:
        return ""
    said = answer.body(4096).lower()
    if b"bucket does not exist" in said:
        return "bucket"
    return "object" if b"no such object" in said else ""
