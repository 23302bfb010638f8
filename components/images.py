"""Looks up the images of boot disks before anything is declared.

The provider finds out that there is no such image when it makes the VM: one that is made again has
been deleted by then.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

import pulumi
import pulumi_gcp as gcp

# What toolchain/environment.py gives a plan without credentials in the place of a token.
PLACEHOLDER_TOKEN = "placeholder-for-a-plan-without-google"  # noqa: S105 - no secret
# What Google's "there is none" looks like in what the provider makes of it.
_NOT_FOUND = re.compile(r"\b[Ee]rror 404\b|\bnotFound\b")


class NotLookedUpError(Exception):
    """Nobody can tell whether there is such an image. The text says why."""


def require(
    asked: Mapping[str, str], look: Callable[[str], int | None], *, dry_run: bool
) -> dict[str, int]:
    """Looks up every image of `asked` (PROJECT/FAMILY or PROJECT/NAME, by the path of its key).

    Returns their sizes, GB; none where they could not be looked up, which in a preview is a warning
    and in an update a `pulumi.RunError`, as for one that is not there.
    """
    try:
        found = {image: look(image) for image in dict.fromkeys(asked.values())}
    except NotLookedUpError as error:
        what = f"{', '.join(asked)}: not looked up, so nobody knows whether it is there: {error}"
        if not dry_run:
            raise pulumi.RunError(f"{what}. Nothing was changed") from None
        pulumi.log.warn(what)
        return {}
    problems = []
    for path, image in asked.items():
        if found[image] is None:
            project, name = image.split("/")
            problems.append(
                f"{path}: the project {project} has no image and no family of images called "
                f"{name}. Nothing was changed; `gcloud compute images list --project={project}` "
                "lists them"
            )
    if problems:
        raise pulumi.RunError("\n".join(problems))
    return {image: size for image, size in found.items() if size is not None}


def look(image: str) -> int | None:
    """The size of an image, GB, or None where there is none.

    Asked through the provider: at its endpoint, with its rights.
    """
    config = pulumi.runtime.get_config_env()
    if os.environ.get("GOOGLE_OAUTH_ACCESS_TOKEN") == PLACEHOLDER_TOKEN and not (
        config.get("gcp:accessToken") or config.get("gcp:credentials")
    ):
        raise NotLookedUpError("there are no Google credentials")
    project, name = image.split("/")
    # In the provider's order: an image of that name, else the newest of the family.
    size = _size(project=project, name=name)
    return _size(project=project, family=name) if size is None else size


def _size(*, project: str, name: str | None = None, family: str | None = None) -> int | None:
    try:
        return gcp.compute.get_image(project=project, name=name, family=family).disk_size_gb
    except Exception as error:  # noqa: BLE001 - the SDK has no other for what the provider says
        text = str(error)
        if _NOT_FOUND.search(text):
            return None
        raise NotLookedUpError(_said(text)) from None


def _said(text: str) -> str:
    """What the provider said, in a line and without the engine's words around it."""
    return text.rpartition("retrieving image information: ")[2].strip().split("\n")[0].rstrip(". ")
