"""Decides which Pulumi is used, and in which environment. All facts are passed in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.toolchain import versions

PLACEHOLDER_TOKEN = "placeholder-for-a-plan-without-google"  # noqa: S105 - no secret
NO_CREDENTIALS = "no Google credentials: this plan was made without asking Google"

PULUMI_CLOUD = "https://api.pulumi.com"

# `backend:` with a `url:`, in block or flow style. An empty URL does not count.
_PROJECT_BACKEND = re.compile(
    r"^backend\s*:(?:[ \t]*#.*)?\s*\{?\s*[\"']?url[\"']?\s*:[ \t]*[\"']?([^\s}\"'#]+)", re.MULTILINE
)


@dataclass(frozen=True, kw_only=True)
class Pulumi:
    """The Pulumi in use: an installed one, or one in our cache."""

    version: str
    path: str
    bin: str | None = None
    """In our cache only: the folder of its programs."""
    home: str | None = None
    """In our cache only: PULUMI_HOME."""
    built: bool = False
    """From source."""

    @property
    def policy_pack(self) -> str:
        """The policy pack as this engine takes it: the old language host of the one that was built
        starts no directory."""
        return "policy/analyzer" if self.built else "policy"


def judge_installed(path: str | None, answer: str) -> tuple[bool, str | None]:
    """Whether an installed Pulumi is used, and a sentence that says why or why not.

    `path` is its path (None: not installed), `answer` the output of its `version` command.
    """
    if path is None:
        return False, None
    version = versions.version_of(answer)
    if version is None:
        return False, (f"The Pulumi at {path} does not say its version, so it is not used.")
    if version < versions.MINIMUM:
        return False, (
            f"The Pulumi at {path} is {versions.dotted(version)}, older than "
            f"{versions.dotted(versions.MINIMUM)}, so it is not used."
        )
    return True, f"Using the installed Pulumi {versions.dotted(version)} ({path}) and its plugins."


def chosen_backend(
    environ: Mapping[str, str], credentials: str | None, project: str | None
) -> str | None:
    """The URL of the backend that the user has chosen, or None. Looks where Pulumi does.

    The environment comes first, then Pulumi.yaml (`project`: its text), then `pulumi login`
    (`credentials`: the text of credentials.json). An access token alone means Pulumi Cloud.
    """
    if url := environ.get("PULUMI_BACKEND_URL"):
        return url
    if project and (found := _PROJECT_BACKEND.search(project)):
        return found[1]
    try:
        current = json.loads(credentials or "{}").get("current")
    except (ValueError, AttributeError):
        # There is a choice; Pulumi itself will say what is wrong with the file.
        return "unreadable"
    if current:
        return str(current)
    return PULUMI_CLOUD if environ.get("PULUMI_ACCESS_TOKEN") else None


def additions(
    *,
    pulumi: Pulumi,
    environ: Mapping[str, str],
    checkout: Path,
    login_folder: Path,
    backend: str | None,
) -> dict[str, str]:
    """Environment variables to add to `environ` for `pulumi` and the program.

    `login_folder` is the folder of the user's credentials.json, `backend` the result of
    `chosen_backend`.
    """
    path = [str(checkout / ".venv" / "bin"), pulumi.bin, environ.get("PATH")]
    added = {
        "PATH": ":".join(filter(None, path)),
        "PULUMI_SKIP_UPDATE_CHECK": "1",
    }
    if pulumi.home is not None:
        added["PULUMI_HOME"] = pulumi.home
        # With another home Pulumi would not find the user's login.
        added["PULUMI_CREDENTIALS_PATH"] = str(login_folder)
        added["PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION"] = "1"
    if not {"PULUMI_CONFIG_PASSPHRASE", "PULUMI_CONFIG_PASSPHRASE_FILE"} & environ.keys():
        added["PULUMI_CONFIG_PASSPHRASE"] = ""
    if backend is None:
        added["PULUMI_BACKEND_URL"] = f"file://{checkout / '.state'}"
    return added


def google_credentials(
    environ: Mapping[str, str],
    stack_file: str,
    *,
    application_default: Path | None,
    product: str,
) -> str | None:
    """The source of the Google provider's credentials, or None.

    `stack_file` is the text of Pulumi.STACK.yaml, `application_default` gcloud's file of
    credentials if it exists, `product` the machine's DMI product name.
    """
    for name in (
        "GOOGLE_CREDENTIALS",
        "GOOGLE_CLOUD_KEYFILE_JSON",
        "GCLOUD_KEYFILE_JSON",
        "GOOGLE_OAUTH_ACCESS_TOKEN",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ):
        if environ.get(name):
            return name
    key = re.search(r"^\s+[\"']?(gcp:(?:credentials|accessToken))[\"']?\s*:", stack_file, re.M)
    if key:
        return f"{key[1]} of the stack file"
    if application_default is not None:
        return str(application_default)
    if product.strip() in {"Google", "Google Compute Engine"}:
        return "this VM's service account"
    return None


def may_update(
    credentials: str | None, arguments: Sequence[str], *, terminal: bool, agreed: bool
) -> tuple[list[str], str | None]:
    """Arguments to add to `pulumi up`, or a sentence that refuses it.

    On a terminal Pulumi shows the plan and asks. Without one the user has to agree beforehand:
    `agreed`, or `--yes` among the arguments.
    """
    if credentials is None:
        return [], (
            "No Google credentials, so nothing can be made: run `gcloud auth application-default "
            "login` or set GOOGLE_APPLICATION_CREDENTIALS, then `make up` again."
        )
    if terminal or {"--yes", "-y"} & set(arguments):
        return [], None
    if agreed:
        return ["--yes"], None
    return [], (
        "There is no terminal to ask whether the plan should be carried out: look at it with "
        "`make preview`, then run `make up` in a terminal or with PILOT_FLEET_YES=1."
    )


def local_backend_warning(backend: str) -> str | None:
    """A warning where the state of real resources is a folder of one machine."""
    if not backend.startswith("file://"):
        return None
    return (
        f"Warning: the state of this fleet is kept in {backend}, on this machine only. "
        "docs/PRODUCTION.md says how to keep it in a versioned bucket."
    )
