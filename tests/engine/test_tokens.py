"""The rendezvous' tokens, made by the real engine in the lab's Secret Manager."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lab.cloud.server import serve
from tests.components.fleet import ROOT, changed
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
        # `make preview` and `make up` check it first without an engine, and the audit reads it.
        for module, argument in (("stack_file", project.stack_file.name), ("declared", "test")):
            read = subprocess.run(
                [sys.executable, "-m", f"components.{module}", argument],
                cwd=project.folder,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (read.returncode, read.stderr) == (0, "")
        declared = project.folder / "declared.json"
        declared.write_text(read.stdout)
        shown = project.preview().no_traceback()
        assert shown.code == 0, shown.text
        assert TOKEN not in shown.text
        made = project.up().no_traceback()
        assert made.code == 0, made.text
        assert TOKEN not in made.text
        where = ("--endpoint", cloud.url, "--project", "project-1", "--fleet", "test")
        audit = subprocess.run(
            [sys.executable, "-m", "ops", *where, "audit", "--json", "--declared", str(declared)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=False,
        )
        # No VM runs here, so each is silent; of what was declared nothing differs.
        assert {each["rule"] for each in json.loads(audit.stdout)["findings"]} == {"silent"}
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
