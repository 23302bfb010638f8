"""Looks up the images of boot disks before anything is declared.

The provider finds out that there is no such image when it makes the VM: one that is made again has
been deleted by then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping

import pulumi
import pulumi_gcp as gcp

from components.rest import NO_CREDENTIALS, NotLookedUpError, no_credentials

# What Google's "there is none" looks like in what the provider makes of it.
_NOT_FOUND = re.compile(r"\b[Ee]rror 404\b|\bnotFound\b")


def look_up(
    asked: Mapping[str, str],
    needed: Container[str],
    look: Callable[[str], int | None],
    *,
    dry_run: bool,
) -> tuple[dict[str, int], list[str]]:
    """Looks up every image of `asked` (PROJECT/FAMILY or PROJECT/NAME, by the path of its key).

    `needed` has the paths of those that this update makes a boot disk of, or that are new. Returns
    the sizes of those that are there, GB, and a sentence for each needed one that is not. What
    cannot be looked up is such a sentence in an update, and a warning in a preview. Of an image
    that is not needed now either is a warning: a VM that runs is not held up by it.
    """
    sizes: dict[str, int] = {}
    problems = []
    now = {path: image for path, image in asked.items() if path in needed}
    later = {path: image for path, image in asked.items() if path not in needed}
    for paths, is_needed in ((now, True), (later, False)):
        try:
            found = {image: look(image) for image in dict.fromkeys(paths.values())}
        except NotLookedUpError as error:
            what = (
                f"{', '.join(paths)}: not looked up, so nobody knows whether it is there: {error}"
            )
            if is_needed and not dry_run:
                problems.append(f"{what}. Nothing was changed")
            else:
                pulumi.log.warn(what)
            continue
        sizes |= {image: size for image, size in found.items() if size is not None}
        for path, image in paths.items():
            if found[image] is not None:
                continue
            project, name = image.split("/")
            what = (
                f"{path}: the project {project} has no image and no family of images called {name}"
            )
            where = f"`gcloud compute images list --project={project}` lists them"
            if is_needed:
                problems.append(f"{what}. Nothing was changed; {where}")
            else:
                pulumi.log.warn(
                    f"{what}. No boot disk is made of it now; an update that has to make a VM "
                    f"with it (one that is lost, new or replaced) will fail. {where}"
                )
    return sizes, problems


def look(image: str) -> int | None:
    """The size of an image, GB, or None where there is none.

    Asked through the provider: at its endpoint, with its rights. Raises `NotLookedUpError` where
    nobody can tell.
    """
    if no_credentials():
        raise NotLookedUpError(NO_CREDENTIALS)
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
