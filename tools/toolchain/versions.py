"""The components that are built: sources, versions, patches, and the names in the cache. Pure.

Versions are the newest that the Go module proxy serves and that work together. Each component's
folder pins its modules by `go.mod` and `go.sum`.
"""

from __future__ import annotations

import hashlib
import platform
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

MINIMUM = (3, 259, 0)
"""The oldest installed Pulumi that is used: the first known to take an executable policy pack."""

ENGINE_VERSION = "v3.259.0"
PLUGIN_VERSION = "v10.2.0"

PROCEDURE = 2
"""Raise it when build.py builds otherwise, or puts other files into a component's folder."""

PROVIDER_SOURCE = (
    "github.com/pulumi/terraform-provider-google-beta@v0.0.0-20220322115232-95a6e6e5087e"
)
PROVIDER_SUM = "h1:I8PChvJk1gf0lnqfu/ipjG1LQJrM4JOKzCYxCOO3QBs="
"""Checksum of that module as in a `go.sum`; it is built from a patched copy."""

PATCHED_FILE = "google-beta/resource_storage_bucket.go"
PATCHES = (
    ("int(condition.Age)", "int(*condition.Age)"),
    ("transformed.Age = int64(v.(int))", "age := int64(v.(int)); transformed.Age = &age"),
)
"""Two lines that do not compile since `condition.Age` became a pointer."""

PROVIDER_GO_MOD = "module github.com/hashicorp/terraform-provider-google-beta\n\ngo 1.17\n"
"""The copy's `go.mod`. Without its old requirements Go does not read the manifests of hundreds of
unused modules; ours names each one that is used."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component: its folder here is its name."""

    name: str
    title: str
    package: str
    output: str
    """Path of the executable inside the component's folder in the cache."""
    ldflags: str
    seconds: float
    """Build time from empty caches on two cores (measured: `tools/toolchain/README.md`)."""
    megabytes: int
    """Size in Go's caches and in ours after the build (measured likewise)."""
    extra: str = ""
    """Other inputs of the result, which no file of the folder holds."""


ENGINE = Component(
    name="engine",
    title="the engine",
    package="github.com/pulumi/pulumi/pkg/v3/cmd/pulumi",
    output="bin/pulumi",
    ldflags=f"-s -w -X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version={ENGINE_VERSION}",
    seconds=210.0,
    megabytes=3400,
)
HOST = Component(
    name="host",
    title="the Python language host",
    package="github.com/pulumi/pulumi/sdk/v3/python/cmd/pulumi-language-python",
    output="bin/pulumi-language-python",
    ldflags="-s -w",
    seconds=17.0,
    megabytes=200,
    extra=ENGINE_VERSION,
)
PROVIDER = Component(
    name="provider",
    title="the Google provider",
    package=".",
    output=f"home/plugins/resource-gcp-{PLUGIN_VERSION}/pulumi-resource-gcp",
    ldflags="-s -w",
    seconds=220.0,
    megabytes=2400,
    extra=repr((PROVIDER_SOURCE, PROVIDER_SUM, PATCHED_FILE, PATCHES, PROVIDER_GO_MOD)),
)
COMPONENTS = (ENGINE, HOST, PROVIDER)


def system() -> str:
    """This machine's system and architecture, which keep caches apart."""
    return f"{platform.system()}-{platform.machine()}".lower()


def key(component: Component, folder: Path, machine: str) -> str:
    """Twelve hex digits that change with every input of the result."""
    digest = hashlib.sha256()
    result = (component.package, component.output, component.ldflags, component.extra)
    for part in (repr(result), str(PROCEDURE), machine):
        digest.update(part.encode() + b"\0")
    for file in sorted(folder.iterdir()):
        if file.suffix in {".go", ".mod", ".sum"}:
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def patch(text: str) -> str:
    """The storage bucket resource with its two lines patched.

    Raises ValueError, which names the line, unless each occurs exactly once: any other source has
    not been examined.
    """
    for old, new in PATCHES:
        found = text.count(old)
        if found != 1:
            raise ValueError(
                f"{PATCHED_FILE} has {found} times `{old}` where the patch expects it once"
            )
        text = text.replace(old, new)
    return text


def version_of(text: str) -> tuple[int, int, int] | None:
    """The first version number in a text such as `v3.260.0-dev.1` or `go version go1.26.8`."""
    found = re.search(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    if not found:
        return None
    return int(found[1]), int(found[2]), int(found[3] or 0)


def go_minimum(go_mods: list[str]) -> tuple[int, int, int]:
    """The newest Go that a `go` line of these `go.mod` texts asks for."""
    versions = [
        version
        for text in go_mods
        for line in re.findall(r"^go (\S+)$", text, re.MULTILINE)
        if (version := version_of(line))
    ]
    return max(versions)


def dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
