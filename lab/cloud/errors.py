"""Errors in Google's shapes.

Compute and Storage answer `{"error": {"code", "message", "errors": [{reason, domain, message}]}}`,
the younger APIs (secrets, monitoring, resource manager) `{"error": {"code", "message", "status"}}`.
Every answer here carries both, so that each client finds what it looks for. Reasons and messages
follow what Compute Engine answers, because clients match on them.
"""

from typing import Final

from lab.cloud import Json

_STATUS: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ALREADY_EXISTS",
    412: "FAILED_PRECONDITION",
    413: "INVALID_ARGUMENT",
    416: "OUT_OF_RANGE",
    501: "UNIMPLEMENTED",
}


class ApiError(Exception):
    """A refused request: `code` is the HTTP status, `reason` is Google's word."""

    def __init__(self, code: int, reason: str, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.status = status or _STATUS.get(code, "INTERNAL")

    def body(self) -> Json:
        """Return the answer's body."""
        detail: Json = {"message": self.message, "domain": "global", "reason": self.reason}
        if self.code == 412:
            detail |= {"locationType": "header", "location": "If-Match"}
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "errors": [detail],
                "status": self.status,
            }
        }


class OperationError(Exception):
    """An operation that was accepted and failed: `code` is Google's, such as IP_IN_USE_…"""

    def __init__(self, code: str, message: str, http_code: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_code = http_code


def not_found(path: str) -> ApiError:
    """Return the 404 for the resource at `path` (`projects/…`)."""
    return ApiError(404, "notFound", f"The resource '{path}' was not found")


def already_exists(path: str) -> ApiError:
    """Return the 409 for the resource at `path`."""
    return ApiError(409, "alreadyExists", f"The resource '{path}' already exists")


def invalid(field: str, value: object, why: str) -> ApiError:
    """Return the 400 for a field of a request."""
    return ApiError(400, "invalid", f"Invalid value for field '{field}': '{value}'. {why}")


def required(field: str) -> ApiError:
    """Return the 400 for a field that is missing."""
    return ApiError(400, "required", f"Required field '{field}' not specified")


def stale(message: str) -> ApiError:
    """Return the 412 for a fingerprint, etag or generation that is not the current one."""
    return ApiError(412, "conditionNotMet", message)


def in_use(singular: str, path: str, user: str) -> ApiError:
    """Return the 400 for deleting a resource that is in use."""
    return ApiError(
        400,
        "resourceInUseByAnotherResource",
        f"The {singular} resource '{path}' is already being used by '{user}'",
    )


def not_ready(path: str, why: str) -> ApiError:
    """Return the 400 for acting on a resource that is not in the state for it."""
    return ApiError(400, "resourceNotReady", f"The resource '{path}' is not ready: {why}")


def not_implemented(what: str) -> ApiError:
    """Return the 501 for a request that Google serves and this stand-in does not."""
    return ApiError(
        501, "notImplemented", f"{what} is not served by this local stand-in for Compute Engine"
    )
