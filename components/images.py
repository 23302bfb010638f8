"""Looks up the images of boot disks before anything is declared.

The provider notices a missing image only when it makes the VM. A VM that it replaces is deleted by
then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping

import pulumi
import pulumi_gcp as gcp

from components.google_rest import (
    NO_CREDENTIALS,
    Google,
    GoogleError,
    NotLookedUpError,
    no_credentials,
)

# Google's "not found" in the text of the provider's error.
_NOT_FOUND = re.compile(r"\b[Ee]rror 404\b|\bnotFound\b")
# States of which Google makes no disk. Of a DEPRECATED image it does.
_REFUSED = frozenset({"OBSOLETE", "DELETED"})


class UnusableImageError(Exception):
    """Google makes no disk from an image. The text is its state."""


def look_up(
    asked: Mapping[str, str],
    needed: Container[str],
    look: Callable[[str], int | None],
    *,
    dry_run: bool,
) -> tuple[dict[str, int], list[str]]:
    """Look up every image of `asked` (PROJECT/FAMILY or PROJECT/NAME, by the path of its key).

    `needed` has the paths of images from which this update makes a boot disk, or that are new.
    Returns the sizes, GB, of the images that exist, and a sentence for each needed one that does
    not. A failed look-up of a needed image is such a sentence in an update, and a warning in a
    preview. For other images both cases are warnings, because running VMs do not need them.
    """
    sizes: dict[str, int] = {}
    problems = []
    now = {path: image for path, image in asked.items() if path in needed}
    later = {path: image for path, image in asked.items() if path not in needed}
    for paths, is_needed in ((now, True), (later, False)):
        try:
            found = {image: _answer(look, image) for image in dict.fromkeys(paths.values())}
        except NotLookedUpError as error:
            message = f"{', '.join(paths)}: cannot be looked up: {error}"
            if is_needed and not dry_run:
                problems.append(f"{message}. Nothing was changed")
            else:
                pulumi.log.warn(message)
            continue
        sizes |= {image: size for image, size in found.items() if isinstance(size, int)}
        for path, image in paths.items():
            wrong = found[image]
            if isinstance(wrong, int):
                continue
            project = image.partition("/")[0]
            message = f"{path}: {wrong}"
            where = f"`gcloud compute images list --project={project}` lists them"
            if is_needed:
                problems.append(f"{message}. Nothing was changed; {where}")
            else:
                pulumi.log.warn(
                    f"{message}. This update makes no boot disk from it; one that makes a VM with "
                    f"it (new, replaced, or lost at Google) will fail. {where}"
                )
    return sizes, problems


def _answer(look: Callable[[str], int | None], image: str) -> int | str:
    """The size of an image, or why no disk can be made from it."""
    project, name = image.split("/")
    try:
        size = look(image)
    except UnusableImageError as error:
        return f"the image {name} of the project {project} is {error}: Google makes no disk from it"
    if size is None:
        return f"the project {project} has no image and no family of images called {name}"
    return size


def look(image: str) -> int | None:
    """The size of an image, GB, or None where it does not exist.

    Asks through the provider: at its endpoint, with its rights. Raises `NotLookedUpError` where the
    look-up fails, and `UnusableImageError`.
    """
    if no_credentials():
        raise NotLookedUpError(NO_CREDENTIALS)
    project, name = image.split("/")
    # The provider's order: an image of that name, else the newest of the family.
    size = _size(project=project, name=name)
    if size is None:
        # A family has no image that is deprecated.
        return _size(project=project, family=name)
    if (state := _state(project, name)) in _REFUSED:
        raise UnusableImageError(state)
    return size


def _state(project: str, name: str) -> str:
    """The state of deprecation of an image, which the provider does not read; "" for none."""
    try:
        image = Google("compute").get(f"projects/{project}/global/images/{name}")
    except GoogleError as error:
        raise NotLookedUpError(str(error).rstrip(". ")) from None
    return str((image.get("deprecated") or {}).get("state", ""))


def _size(*, project: str, name: str | None = None, family: str | None = None) -> int | None:
    try:
        return gcp.compute.get_image(project=project, name=name, family=family).disk_size_gb
    except Exception as error:  # noqa: BLE001 - the SDK raises nothing narrower
        text = str(error)
        if _NOT_FOUND.search(text):
            return None
        raise NotLookedUpError(_first_line(text)) from None


def _first_line(text: str) -> str:
    """The first line of the provider's message, without the engine's words around it."""
    return text.rpartition("retrieving image information: ")[2].strip().split("\n")[0].rstrip(". ")
