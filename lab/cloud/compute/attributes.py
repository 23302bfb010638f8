"""Metadata, labels and tags: what is accepted, and optimistic locking by fingerprint."""

import re
from typing import Any, Final

from lab.cloud import Json
from lab.cloud.errors import ApiError, invalid, stale
from lab.cloud.store import fingerprint

MOST_VALUE: Final = 256 * 1024  # bytes of one metadata value (Compute Engine's documented limit)
MOST_TOTAL: Final = 512 * 1024  # bytes of all keys and values together (documented limit)

_KEY = re.compile(r"[-_a-zA-Z0-9]{1,128}")
_LABEL = re.compile(r"[\w-]{0,63}")


def metadata(given: Any, field: str = "resource.metadata") -> Json:
    """Return metadata as compute answers it, with its fingerprint; 400 where it is refused."""
    items = _items(given, field)
    result: Json = {"kind": "compute#metadata", "fingerprint": fingerprint(items)}
    if items:
        result["items"] = items
    return result


def _items(given: Any, field: str) -> list[Json]:
    items: list[Json] = []
    seen: set[str] = set()
    for index, item in enumerate((given or {}).get("items") or []):
        where = f"{field}.items[{index}]"
        key, value = item.get("key"), item.get("value", "")
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            why = "Must be a match of regex '[a-zA-Z0-9-_]{1,128}'"
            raise invalid(f"{where}.key", key, why)
        if key in seen:
            raise invalid(field, key, f"Duplicate metadata key: {key}.")
        if not isinstance(value, str):
            raise invalid(f"{where}.value", value, "Must be a string.")
        size = len(value.encode())
        if size > MOST_VALUE:
            message = (
                f"Value for field '{where}.value' is too large: maximum size {MOST_VALUE}"
                f" character(s); actual size {size}."
            )
            raise ApiError(413, "fieldSizeTooLarge", message)
        seen.add(key)
        items.append({"key": key, "value": value})
    total = sum(len(item["key"].encode()) + len(item["value"].encode()) for item in items)
    if total > MOST_TOTAL:
        message = f"Metadata has {total} bytes; at most {MOST_TOTAL} are allowed in total."
        raise ApiError(413, "fieldSizeTooLarge", message)
    return items


def change_metadata(current: Json, given: Json) -> Json:
    """Return the new metadata of a set request; 412 where its fingerprint is not the current."""
    if given.get("fingerprint") != current["fingerprint"]:
        raise stale("Supplied fingerprint does not match current metadata fingerprint.")
    return metadata(given, "metadata")


def value(given: Json, key: str) -> str | None:
    """Return the value of a metadata key, None where it is not there."""
    for item in given.get("items", []):
        if item["key"] == key:
            return str(item["value"])
    return None


def labels(given: Any, field: str = "resource.labels") -> dict[str, str]:
    """Return labels; 400 where they are refused."""
    for key, text in (given or {}).items():
        good = isinstance(text, str) and _LABEL.fullmatch(key) and _LABEL.fullmatch(text)
        if not good or not key or key.lower() != key or text.lower() != text:
            raise invalid(field, f"{key}: {text}", "Invalid label.")
    return dict(given or {})


def label_fields(given: Any) -> Json:
    """Return the fields that carry the labels of a resource; none without labels."""
    kept = labels(given)
    result: Json = {"labelFingerprint": fingerprint(kept)}
    if kept:
        result["labels"] = kept
    return result


def change_labels(resource: Json, given: Json) -> None:
    """Set a resource's labels; 412 where the fingerprint is not the current one."""
    if given.get("labelFingerprint") != resource["labelFingerprint"]:
        raise stale("Labels fingerprint either invalid or resource labels have changed")
    resource.pop("labels", None)
    resource.update(label_fields(given.get("labels")))


def tags(given: Any) -> Json:
    """Return network tags as compute answers them, with their fingerprint."""
    items = sorted((given or {}).get("items") or [])
    result: Json = {"fingerprint": fingerprint(items)}
    if items:
        result["items"] = items
    return result


def change_tags(current: Json, given: Json) -> Json:
    """Return the new tags of a set request; 412 where its fingerprint is not the current."""
    if given.get("fingerprint") != current["fingerprint"]:
        raise stale("Supplied fingerprint does not match current tags fingerprint.")
    return tags(given)
