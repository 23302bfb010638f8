"""Snoozes the fleet's alerts in Cloud Monitoring during planned work.

A snooze ends by itself, so a command that is killed does not silence alerts for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ops.errors import MissingError, UnsupportedError
from ops.google import Cloud
from ops.json_document import seconds

_AT_ONCE: Final = 16
"""Cloud Monitoring's limit of alert policies per snooze."""


@dataclass(frozen=True, kw_only=True)
class Silence:
    """The alerts of one fleet."""

    cloud: Cloud
    fleet: str

    def _url(self, path: str) -> str:
        return f"{self.cloud.place.monitoring}/v3/{path}"

    def policies(self) -> list[str]:
        """The names of the alert policies with the fleet's label."""
        found: list[str] = []
        page = ""
        while True:
            path = f"projects/{self.cloud.place.project}/alertPolicies?pageSize=500"
            answer = self.cloud.call(
                "GET", self._url(path) + (f"&pageToken={page}" if page else ""), "alert policies"
            )
            for each in answer.get("alertPolicies", []):
                if each.get("userLabels", {}).get("pilot-fleet") == self.fleet:
                    found.append(str(each["name"]))
            page = str(answer.get("nextPageToken", ""))
            if not page:
                return found

    def begin(self, why: str, span: timedelta) -> tuple[str, ...]:
        """Silence the fleet's alerts for `span` at most; the names of the snoozes. None where there
        are no alerts, or the API has no snoozes."""
        try:
            policies = self.policies()
            return tuple(
                self._snooze(why, span, policies[first : first + _AT_ONCE])
                for first in range(0, len(policies), _AT_ONCE)
            )
        except (MissingError, UnsupportedError):
            return ()

    def _snooze(self, why: str, span: timedelta, policies: list[str]) -> str:
        start = datetime.now(UTC)
        body: dict[str, Any] = {
            "displayName": why[:500],
            "criteria": {"policies": policies},
            "interval": {"startTime": _time(start), "endTime": _time(start + span)},
        }
        path = f"projects/{self.cloud.place.project}/snoozes"
        return str(self.cloud.call("POST", self._url(path), "silence alerts", body)["name"])

    def end(self, name: str) -> None:
        """End a snooze now, unless it has ended by itself."""
        try:
            found = self.cloud.call("GET", self._url(name), "the silence")
            end = seconds(str(found.get("interval", {}).get("endTime", "")))
            if end is not None and end <= datetime.now(UTC).timestamp():
                return
            body = {"interval": {"endTime": _time(datetime.now(UTC))}}
            url = f"{self._url(name)}?updateMask=interval.endTime"
            self.cloud.call("PATCH", url, "end the silence", body)
        except MissingError:
            return


def _time(when: datetime) -> str:
    return when.isoformat(timespec="seconds").replace("+00:00", "Z")
