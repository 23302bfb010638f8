"""The project with the real engine: a copy of the program, a stack of its own, its own backend."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.components.fleet import ROOT, SEED_FILE

_SALT = yaml.safe_load(SEED_FILE.read_text())["encryptionsalt"]
# A first run compiles nothing and downloads nothing; two busy cores still deserve patience.
_TIMEOUT_S = 300


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the CLI said, both streams together, and how it ended."""

    code: int
    text: str

    def no_traceback(self) -> Answer:
        assert "Traceback" not in self.text, self.text
        assert "unhandled exception" not in self.text, self.text
        assert "panic" not in self.text, self.text
        return self


@dataclass(kw_only=True)
class Project:
    """A copy of the program below `folder`, run with the real CLI.

    A copy, because a test changes the stack file, and because a file backend and a stack's salt
    must not land in the checkout.
    """

    folder: Path
    environment: Mapping[str, str]
    stack: str = "test"
    extra: dict[str, Any] = field(default_factory=dict)
    _bin: str = ""

    def __post_init__(self) -> None:
        self.take(ROOT)
        # Any file will do as a binary that nobody starts.
        for binary in ("pilot-daemon", "pilot-rendezvous"):
            path = self.folder / "artifacts" / "1.18.0" / binary
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/false\n# {binary}, a stand-in for a test\n")
        (self.folder / ".state").mkdir()
        self.environment = dict(self.environment) | {
            "PULUMI_BACKEND_URL": f"file://{self.folder / '.state'}",
            "GOOGLE_OAUTH_ACCESS_TOKEN": "planning-only",
        }

    def take(self, tree: Path) -> None:
        """The program of `tree`, in place of the one that is there; stack and state stay."""
        for room in ("components", "startup", "policy"):
            shutil.rmtree(self.folder / room, ignore_errors=True)
            shutil.copytree(
                tree / room, self.folder / room, ignore=shutil.ignore_patterns("__pycache__")
            )
        for file in ("Pulumi.yaml", "__main__.py"):
            shutil.copy(tree / file, self.folder / file)
        venv = (tree / ".venv").resolve()
        (self.folder / ".venv").unlink(missing_ok=True)
        (self.folder / ".venv").symlink_to(venv)
        # A language host that takes the Python of PATH.
        path = self.environment.get("PATH", "").removeprefix(f"{self._bin}:")
        self._bin = str(venv / "bin")
        self.environment = dict(self.environment) | {"PATH": f"{self._bin}:{path}"}

    @property
    def stack_file(self) -> Path:
        return self.folder / f"Pulumi.{self.stack}.yaml"

    def configure(self, values: Mapping[str, Any], **others: Any) -> None:
        """Writes the stack file: keys of `pilot-fleet:`, and others such as `gcp__project`."""
        config = {f"pilot-fleet:{key}": value for key, value in values.items()}
        config |= {"gcp:project": "project-1"} | self.extra
        config |= {key.replace("__", ":"): value for key, value in others.items()}
        self.write(yaml.safe_dump({"config": config, "encryptionsalt": _SALT}))

    def write(self, text: str) -> None:
        """Writes the stack file as text; the first time the stack is made as well."""
        new = not self.stack_file.exists()
        if new:
            self.stack_file.write_text(f"encryptionsalt: {_SALT}\n")
            made = self.pulumi("stack", "init", self.stack)
            assert made.code == 0, made.text
        self.stack_file.write_text(text)

    def pulumi(self, *arguments: str) -> Answer:
        done = subprocess.run(
            ["pulumi", *arguments, "--non-interactive", "--color=never"],
            cwd=self.folder,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        return Answer(code=done.returncode, text=done.stdout)

    def preview(self, *arguments: str, policies: bool = True) -> Answer:
        return self.pulumi("preview", "-s", self.stack, *_pack(policies), *arguments)

    def up(self, *arguments: str, policies: bool = True) -> Answer:
        return self.pulumi("up", "-s", self.stack, "--yes", *_pack(policies), *arguments)

    def steps(self, *arguments: str) -> dict[str, str]:
        """What a preview would do: resource name to operation, without what stays the same."""
        answer = self.pulumi("preview", "-s", self.stack, "--json", *arguments)
        assert answer.code == 0, answer.text
        plan = json.loads(answer.text[answer.text.index("{") :])
        return {
            re.sub(r"^.*::", "", step["urn"]): step["op"]
            for step in plan["steps"]
            if step["op"] not in {"same", "read", "refresh"}
        }

    def dead_zones(self) -> tuple[list[str], list[str]]:
        """The arguments that `make up` adds for zones that do not answer, and its sentences."""
        exported = self.pulumi("stack", "export", "-s", self.stack).text
        looked = subprocess.run(
            [".venv/bin/python", "-m", "components.dead_zones", self.stack],
            cwd=self.folder,
            env=dict(self.environment),
            input=exported[exported.index("{") :],
            stdout=subprocess.PIPE,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        told = json.loads(looked.stdout)
        return [f"--exclude={urn}" for urn in told["exclude"]], told["sentences"]

    def append(self, code: str) -> None:
        """Adds to the program, as an operator with an idea would."""
        with (self.folder / "__main__.py").open("a", encoding="utf-8") as main:
            main.write(f"\n{code}\n")


def _pack(policies: bool) -> list[str]:
    settings = ["--policy-pack-config", "policy/settings.json"]
    return ["--policy-pack", "policy/analyzer", *settings] if policies else []
