"""Conditions of requests: generations, metagenerations, ETags, ranges of bytes."""

import re
from collections.abc import Mapping
from typing import Final

from lab.cloud import Json
from lab.cloud.errors import ApiError, stale
from lab.cloud.web import Request, Response

_FAILED: Final = "At least one of the pre-conditions you specified did not hold."
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def check_metageneration(body: Json, query: Mapping[str, str]) -> None:
    """Refuse (412) a request whose conditions on the metageneration do not hold."""
    wanted = query.get("ifMetagenerationMatch")
    unwanted = query.get("ifMetagenerationNotMatch")
    held = body["metageneration"]
    if wanted not in (None, held) or (unwanted is not None and unwanted == held):
        raise stale(_FAILED)


def check_object(shown: Json | None, query: Mapping[str, str]) -> None:
    """Refuse (412) a change whose conditions on generations do not hold; 0 is "not there"."""
    generation = shown["generation"] if shown else "0"
    wanted = query.get("ifGenerationMatch")
    unwanted = query.get("ifGenerationNotMatch")
    if wanted not in (None, generation) or (unwanted is not None and unwanted == generation):
        raise stale(_FAILED)
    if shown:
        check_metageneration(shown, query)


def unchanged_answer(shown: Json, request: Request) -> Response | None:
    """Return the 304 for a reader that has this generation; raise 412 where a condition fails."""
    wanted = request.query.get("ifGenerationMatch")
    match = request.header("if-match").strip('"')
    if wanted not in (None, shown["generation"]) or match not in ("", "*", shown["etag"]):
        raise stale(_FAILED)
    if request.query.get("ifMetagenerationMatch") not in (None, shown["metageneration"]):
        raise stale(_FAILED)
    known = [each.strip().strip('"') for each in request.header("if-none-match").split(",")]
    same = request.query.get("ifGenerationNotMatch") == shown["generation"]
    same = same or request.query.get("ifMetagenerationNotMatch") == shown["metageneration"]
    if same or shown["etag"] in known or "*" in known:
        return Response(status=304, headers={"ETag": shown["etag"]})
    return None


def byte_range(text: str, size: int) -> tuple[int, int, bool]:
    """Return start, length and whether it is a part, from a Range header; 416 out of range."""
    match = _RANGE.fullmatch(text)
    if not match or match.groups() == ("", ""):
        return 0, size, False  # anything else is ignored (RFC 9110)
    first, final = match.groups()
    if first == "":
        start, end = max(0, size - int(final)), size - 1
    else:
        start, end = int(first), min(int(final) if final else size - 1, size - 1)
    if start >= size or end < start:
        raise ApiError(416, "requestedRangeNotSatisfiable", "Request range not satisfiable")
    return start, end - start + 1, True
