"""The image: its sources, its recipe, its cache. Nothing is built."""

import shutil
from pathlib import Path

import pytest

from lab.machines import image
from lab.machines.image import Image


def test_only_debians_own_suite_becomes_a_source() -> None:
    targets = "\n".join(
        [
            "Debian|bookworm|http://m/debian/|bookworm|main",
            "Debian|bookworm|http://m/debian/|bookworm|contrib",
            "Debian|bookworm-security|http://s/sec/|bookworm-security|main",
            "Debian|trixie|http://m/debian/|trixie|main",
            "Other|bookworm|http://o/|bookworm|main",
            "Debian|bookworm|http://m/debian/|bookworm|main",
        ]
    )
    assert image.source_lines(targets) == [
        "deb http://m/debian/ bookworm main",
        "deb http://s/sec/ bookworm-security main",
    ]


def test_without_the_suite_the_image_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_output", lambda *_: "Debian|trixie|http://m/|trixie|main\n")
    with pytest.raises(image.ImageError, match="knows no Debian bookworm"):
        image._sources()


def test_a_changed_recipe_is_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "files"
    shutil.copytree(image.FILES, files)
    key = image.recipe_key()
    monkeypatch.setattr(image, "FILES", files)
    assert image.recipe_key() == key
    changed = files / "root/etc/hosts"
    changed.write_text(changed.read_text() + "\n")
    other = image.recipe_key()
    assert other != key
    (files / "init").chmod(0o644)
    assert image.recipe_key() not in (key, other)
    monkeypatch.setattr(image, "FILES", Path(image.__file__).parent / "image")
    monkeypatch.setattr(image, "PACKAGES", (*image.PACKAGES, "one-more"))
    assert image.recipe_key() != key


def test_an_image_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / f"image-{image.recipe_key()}"
    assert image.find_image(tmp_path) is None
    folder.with_name(folder.name + ".part").mkdir()
    assert image.find_image(tmp_path) is None
    folder.mkdir()
    (folder / "image.json").write_text('{"build": "b1"}')
    assert image.find_image(tmp_path) == Image(folder=folder, build="b1")
    assert image.ensure_image(tmp_path) == Image(folder=folder, build="b1")


def test_a_build_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def install(target: Path) -> None:
        steps.append("install")
        target.write_text("packages")

    def pack(*command: str, what: str, stdin: str = "") -> None:
        steps.append("pack")
        if steps.count("pack") == 1:
            raise image.ImageError("power cut")
        (Path(command[-2]) / "root.raw").write_text("disk")

    monkeypatch.setattr(image, "_install", install)
    monkeypatch.setattr(image, "_run", pack)
    with pytest.raises(image.ImageError):
        image.ensure_image(tmp_path)
    assert image.find_image(tmp_path) is None
    built = image.ensure_image(tmp_path)
    assert steps == ["install", "pack", "pack"]
    assert built.root.read_text() == "disk"
    assert built.root.stat().st_mode & 0o222 == 0, "an image is read-only: disks lie over it"
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == [built.folder.name]


def test_the_cache_is_where_the_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert image.default_cache() == Path("/somewhere/lab")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative, which the standard says to ignore")
    monkeypatch.setenv("HOME", "/home/me")
    assert image.default_cache() == Path("/home/me/.cache/lab")
