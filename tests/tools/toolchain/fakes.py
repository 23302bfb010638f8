"""A `go` and a `pulumi` for tests: programs that answer as told and note how they were called."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools.toolchain import versions

ROOT = Path(__file__).resolve().parents[3]

GO = """\
import json, os, pathlib, sys
args = sys.argv[1:]
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write("go " + " ".join(args) + "\\n")
if args[0] == "env":
    print(json.dumps({
        "GOVERSION": os.environ.get("FAKE_GO_VERSION", "go1.30.0"),
        "GOTOOLCHAIN": os.environ.get("FAKE_GOTOOLCHAIN", "auto"),
        "GOMODCACHE": os.environ["FAKE_MODULES"], "GOCACHE": os.environ["FAKE_MODULES"],
        "GOPROXY": "https://proxy.example,direct", "GOTMPDIR": "",
    }))
elif args[0] == "build":
    failing = os.environ.get("FAKE_FAILING", "")
    if failing and failing in args[-1]:
        sys.stderr.write(os.environ["FAKE_GO_SAYS"] + "\\n")
        sys.exit(1)
    out = pathlib.Path(args[args.index("-o") + 1])
    out.write_text("#!/bin/sh\\necho v3.259.0\\n")
    out.chmod(0o755)
elif args[0] == "mod":
    module = "sdk" if "sdk" in args[-1] else "google"
    print(json.dumps({"Dir": os.environ["FAKE_MODULES"] + "/" + module,
                      "Sum": os.environ.get("FAKE_SUM", "")}))
"""

PULUMI = """\
import json, os, sys
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write("pulumi " + " ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "version":
    print(os.environ["FAKE_PULUMI_VERSION"])
elif sys.argv[1] in ("preview", "up"):
    names = (
        *("GOOGLE_OAUTH_ACCESS_TOKEN", "PULUMI_BACKEND_URL", "PULUMI_HOME"),
        "PILOT_REFUSE_UNKNOWN",
    )
    print(json.dumps({name: os.environ.get(name) for name in names}))
    sys.exit(int(os.environ.get("FAKE_UPDATE_STATUS", "0")))
"""


def executable(path: Path, program: str) -> None:
    """A Python program that runs by its name, wherever the interpreter is (a first line that
    names it could hold no space)."""
    source = path.with_name(f"{path.name}-source.py")
    source.write_text(program)
    path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", str(source)])} "$@"\n')
    path.chmod(0o755)


@dataclass
class Machine:
    """A machine with a home, a cache and only the fake programs that were installed on it."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("bin", "home", "modules"):
            (self.folder / name).mkdir(parents=True)
        self.environ = {
            "PATH": str(self.folder / "bin"),
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.cache),
            "FAKE_LOG": str(self.folder / "log"),
            "FAKE_MODULES": str(self.folder / "modules"),
            # Nobody: the tests fetch nothing, wherever they run.
            "https_proxy": "http://127.0.0.1:9",
        }

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def toolchain(self) -> Path:
        return self.cache / "pilot-fleet" / "toolchain"

    def install(self, name: str, program: str) -> None:
        executable(self.folder / "bin" / name, program)

    def run(self, *arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """toolchain.py of a checkout on this machine, without a terminal."""
        return subprocess.run(
            [sys.executable, str(root / "tools" / "toolchain" / "toolchain.py"), *arguments],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


def modules_for(machine: Machine) -> None:
    """The part of Go's module cache that a build uses."""
    script = machine.folder / "modules/sdk/python/cmd/pulumi-language-python-exec"
    script.parent.mkdir(parents=True)
    script.write_text("#!/usr/bin/env python3\n")
    patched = machine.folder / "modules/google" / versions.PATCHED_FILE
    patched.parent.mkdir(parents=True)
    patched.write_text("\n".join(old for old, _ in versions.PATCHES))
    patched.chmod(0o444)  # as in a module cache
    machine.environ["FAKE_SUM"] = versions.PROVIDER_SUM
