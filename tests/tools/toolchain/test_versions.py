"""The components, and when they have to be built again."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tools.toolchain import versions


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v3.259.0", (3, 259, 0)),
        ("3.272.0\n", (3, 272, 0)),
        ("v3.260.0-alpha.1720000000+abc", (3, 260, 0)),
        ("go1.26.8", (1, 26, 8)),
        ("go1.21", (1, 21, 0)),
        ("devel +5d5f0b6", None),
        ("", None),
        ("pulumi: command not found", None),
    ],
)
def test_versions_are_read_as_tools_print_them(
    text: str, version: tuple[int, int, int] | None
) -> None:
    assert versions.version_of(text) == version


def test_the_newest_go_line_is_the_go_that_is_needed() -> None:
    assert versions.go_minimum(["module a\n\ngo 1.21\n", "module b\n\ngo 1.25.11\n"]) == (1, 25, 11)


def test_every_component_pins_its_modules() -> None:
    for component in versions.COMPONENTS:
        folder = versions.HERE / component.name
        manifest = (folder / "go.mod").read_text()
        sums = (folder / "go.sum").read_text()
        assert f"module pilot-fleet/toolchain/{component.name}\n" in manifest
        assert " h1:" in sums
    assert (
        f"pulumi/pkg/v3 {versions.ENGINE_VERSION} " in (versions.HERE / "engine/go.mod").read_text()
    )
    assert f'"{versions.PLUGIN_VERSION[1:]}"' in (versions.HERE / "provider/main.go").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(versions.HERE / "provider", tmp_path / "provider")
    return tmp_path / "provider"


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "main.go"])
def test_the_key_follows_every_file_of_the_recipe(folder: Path, file: str) -> None:
    before = versions.key(versions.PROVIDER, folder, "linux-x86_64")
    with (folder / file).open("a") as out:
        out.write("\n")
    assert versions.key(versions.PROVIDER, folder, "linux-x86_64") != before


def test_the_key_follows_versions_patch_and_machine_and_nothing_else(folder: Path) -> None:
    key = versions.key(versions.PROVIDER, folder, "linux-x86_64")
    other_patch = dataclasses.replace(versions.PROVIDER, extra=versions.PROVIDER.extra + "x")
    other_flags = dataclasses.replace(versions.PROVIDER, ldflags="")
    assert versions.key(other_patch, folder, "linux-x86_64") != key
    assert versions.key(other_flags, folder, "linux-x86_64") != key
    assert versions.key(versions.PROVIDER, folder, "linux-aarch64") != key
    better_estimate = dataclasses.replace(versions.PROVIDER, seconds=1.0, megabytes=1)
    (folder / "README.md").write_text("prose")
    assert versions.key(better_estimate, folder, "linux-x86_64") == key
    assert versions.PATCHES[0][0] in versions.PROVIDER.extra
    assert versions.PROVIDER_SUM in versions.PROVIDER.extra


GOOD = "\n".join(["package google", *(old for old, _ in versions.PATCHES), "}"])


def test_the_patch_mends_both_lines() -> None:
    patched = versions.patch(GOOD)
    for old, new in versions.PATCHES:
        assert new in patched
        assert old not in patched


@pytest.mark.parametrize("old", [old for old, _ in versions.PATCHES])
def test_the_patch_refuses_a_source_that_it_was_not_written_for(old: str) -> None:
    for changed in (GOOD.replace(old, "something else"), GOOD + old):
        with pytest.raises(ValueError, match="where the patch expects it once"):
            versions.patch(changed)
