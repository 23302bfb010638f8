"""The rendezvous' tokens, made by the real engine in the lab's Secret Manager."""

from __future__ import annotations

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lab.server import serve
from tests.components.fleet import changed
from tests.engine.project import Project

pytestmark = pytest.mark.engine

TOKEN = "token-of-a-test-0123456789"
ACCOUNT = "vms@project-1.iam.gserviceaccount.com"


def asked(url: str) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": "Bearer anything"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def test_a_token_is_in_secret_manager_and_nowhere_in_the_clear(
    tmp_path: Path, pulumi_env: dict[str, str]
) -> None:
    with serve(tmp_path / "cloud") as cloud:
        project = Project(folder=tmp_path / "fleet", environment=pulumi_env, extra=cloud.settings())
        project.configure(changed(serviceAccount=ACCOUNT, tokens={"admin": ""}))
        # As Pulumi.yaml says it is done: in the stack file it is encrypted, too.
        words = ("--secret", "--path", "pilot-fleet:tokens.dashboard", TOKEN)
        kept = project.pulumi("config", "set", *words, "-s", project.stack)
        assert kept.code == 0, kept.text
        shown = project.preview().no_traceback()
        assert shown.code == 0, shown.text
        assert TOKEN not in shown.text
        made = project.up().no_traceback()
        assert made.code == 0, made.text
        assert TOKEN not in made.text
        base = f"{cloud.url}/v1/projects/project-1/secrets"
        found = asked(f"{base}/pilot-fleet-dashboard-token/versions/latest:access")
        assert base64.b64decode(found["payload"]["data"]).decode() == TOKEN
        assert "versions" not in asked(f"{base}/pilot-fleet-admin-token/versions")
        policy = asked(f"{base}/pilot-fleet-admin-token:getIamPolicy")
        assert policy["bindings"] == [
            {
                "role": "roles/secretmanager.secretAccessor",
                "members": [f"serviceAccount:{ACCOUNT}"],
            }
        ]
        state = [path for path in (project.folder / ".state").rglob("*") if path.is_file()]
        assert any(b"dashboard-token" in path.read_bytes() for path in state)
        assert not [path for path in state if TOKEN.encode() in path.read_bytes()]
        assert project.steps() == {}
