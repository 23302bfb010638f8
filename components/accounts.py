"""Looks up the service account that running VMs are to get, before anything is declared.

A VM is stopped for another account, and Google says only then that there is no such account.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pulumi

from components.config import PROJECT_NAME
from components.rest import (
    NO_CREDENTIALS,
    Google,
    GoogleError,
    NotLookedUpError,
    no_credentials,
)

_PATH = f"{PROJECT_NAME}:serviceAccount"
_ACCOUNT = re.compile(r"[^@/]+@(?P<project>[a-z][a-z0-9-]*)\.iam\.gserviceaccount\.com")


def problems(email: str | None, vms: Sequence[str], look: Callable[[str], bool]) -> list[str]:
    """A sentence where there is no account `email`, the fleet's, which `vms` are to get.

    What cannot be looked up is a warning, in an update as well: to set an account takes another
    right than to look at it.
    """
    if email is None or not vms:
        return []
    try:
        if look(email):
            return []
    except NotLookedUpError as error:
        pulumi.log.warn(
            f"{_PATH}: not looked up, so nobody knows whether there is an account {email}: "
            f"{error}. If there is none, {vms[0]} is stopped before Google says so"
        )
        return []
    what = f"{_PATH}: there is no service account {email}, so {', '.join(vms)} cannot get it"
    return [f"{what}. Nothing was changed; `gcloud iam service-accounts list` lists a project's"]


def look(email: str) -> bool:
    """Whether there is such an account. Raises `NotLookedUpError` where nobody can tell."""
    if no_credentials():
        raise NotLookedUpError(NO_CREDENTIALS)
    match = _ACCOUNT.fullmatch(email)
    if match is None:
        raise NotLookedUpError("its address does not name its project")
    try:
        # With its project: with `-` in its place Google says 403 for one that is not there.
        Google("iam").get(f"projects/{match['project']}/serviceAccounts/{email}")
    except GoogleError as error:
        if error.status == 404:
            return False
        raise NotLookedUpError(str(error).rstrip(". ")) from None
    return True
