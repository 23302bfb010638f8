"""Looks up a new service account of running VMs before anything is declared.

Google notices a missing account only after the VM is stopped for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pulumi

from components.config import PROJECT_NAME
from components.google_rest import (
    NO_CREDENTIALS,
    Google,
    GoogleError,
    NotLookedUpError,
    no_credentials,
)

_ACCOUNT = re.compile(r"[^@/]+@(?P<project>[a-z][a-z0-9-]*)\.iam\.gserviceaccount\.com")


def problems(
    email: str | None,
    vms: Sequence[str],
    look: Callable[[str], bool],
    *,
    key: str = "serviceAccount",
) -> list[str]:
    """A sentence where the account `email`, which `vms` are to get, does not exist. `key`: where
    the stack file names it.

    A failed look-up is a warning, in an update as well: setting an account and looking at it are
    different rights.
    """
    if email is None or not vms:
        return []
    path = f"{PROJECT_NAME}:{key}"
    try:
        if look(email):
            return []
    except NotLookedUpError as error:
        pulumi.log.warn(
            f"{path}: cannot be looked up ({email}): {error}. If it does not exist, "
            f"{vms[0]} is stopped before Google says so"
        )
        return []
    message = f"{path}: there is no service account {email}, so {', '.join(vms)} cannot get it"
    return [f"{message}. Nothing was changed; `gcloud iam service-accounts list` lists a project's"]


def look(email: str) -> bool:
    """Whether the account exists. Raises `NotLookedUpError` where the look-up fails."""
    if no_credentials():
        raise NotLookedUpError(NO_CREDENTIALS)
    match = _ACCOUNT.fullmatch(email)
    if match is None:
        raise NotLookedUpError("its address does not name its project")
    try:
        # With `-` in place of the project, Google answers 403 for an account that does not exist.
        Google("iam").get(f"projects/{match['project']}/serviceAccounts/{email}")
    except GoogleError as error:
        if error.status == 404:
            return False
        raise NotLookedUpError(str(error).rstrip(". ")) from None
    return True
