"""Tells a missing object from a missing bucket in Cloud Storage's answers."""

from __future__ import annotations

from . import http_client


def what_is_gone(answer: http_client.HttpAnswer) -> str:
    """`bucket` or `object`, where Cloud Storage says that it does not exist, else "".

    By Cloud Storage's own words, JSON or plain: any server can answer 404, and a missing object
    ends a hold, or makes a release lost. Reads the body of a 404.
    """
    if answer.status != 404:
        return ""
    said = answer.body(4096).lower()
    if b"bucket does not exist" in said:
        return "bucket"
    return "object" if b"no such object" in said else ""
