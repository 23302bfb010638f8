"""Time, ETag and merge patch, for records of buckets and of objects."""

import base64
import hashlib
from datetime import UTC, datetime

from lab.cloud import Json


def now() -> str:
    """Return the time as Cloud Storage writes it, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def etag(text: str) -> str:
    """Return the ETag of a record, made of its generation."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()[:9]).decode()


def merged(body: Json, given: Json) -> Json:
    """Return a resource after JSON merge patch: null deletes, objects are merged."""
    result = dict(body)
    for key, value in given.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        elif isinstance(value, dict):
            result[key] = merged({}, value)
        else:
            result[key] = value
    return result
