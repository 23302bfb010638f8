"""Run by the startup script: installs the files that it carries, then runs steps of pilot-node.

    python3 -IS unpack.py ROOT [STEP ...] <FILES

FILES is base64 of bzip2: for each file a line `FILE MODE LINES PATH`, then LINES lines. All in one
process: on an emulated CPU a start of Python takes seconds.
"""

import base64
import bz2
import os
import sys
from contextlib import suppress
from pathlib import Path

# Everything below belongs to the fleet. Files that are not carried are of an older script.
LIB = "usr/local/lib/pilot"


def install(root: Path, data: bytes) -> "set[Path]":
    """Install every file in `data` below `root`, complete or not at all; the files. Modules of an
    older script are removed. Raises OSError."""
    lines = data.split(b"\n")
    carried: set[Path] = set()
    at = 0
    while at < len(lines) - 1:
        mark, mode, count, name = lines[at].decode().split(" ", 3)
        if mark != "FILE":
            raise ValueError(f"line {at + 1} of what the script carries is no FILE line")
        first, at = at + 1, at + 1 + int(count)
        path = root / name.lstrip("/")
        carried.add(path)
        put(path, b"".join(line + b"\n" for line in lines[first:at]), int(mode, 8))
    # Other entries of LIB are left alone.
    modules = root / LIB / "node"
    if modules.is_dir():
        clear(modules, carried)
    return carried


def clear(folder: Path, carried: "set[Path]") -> None:
    """Remove files below `folder` that are not in `carried`, and compiled modules whose source is
    not."""
    for found in folder.iterdir():
        if found.is_dir() and not found.is_symlink():
            clear(found, carried)
            # A folder that is not empty stays.
            with suppress(OSError):
                found.rmdir()
        else:
            source = found
            if folder.name == "__pycache__":
                source = folder.parent / f"{found.name.partition('.')[0]}.py"
            if source not in carried:
                found.unlink()


def put(path: Path, data: bytes, mode: int) -> None:
    there = not path.is_symlink() and path.is_file() and path.stat().st_mode & 0o7777 == mode
    if there and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: the next run removes what an interrupted one left.
    new = path.with_name(f".new.{path.name}")
    new.unlink(missing_ok=True)
    try:
        new.write_bytes(data)
        new.chmod(mode)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


# In quotes, so that a Python that is too old reads as far as its error message.
def main(root: Path, steps: "list[str]") -> int:
    if sys.version_info < (3, 11):  # noqa: UP036
        print(
            "pilot: program: this image has Python {}.{}, and pilot-node needs 3.11 or newer: use "
            "debian-cloud/debian-12 or an image that has it".format(*sys.version_info)
        )
        return 1
    try:
        carried = install(root, bz2.decompress(base64.b64decode(sys.stdin.buffer.read())))
    except OSError as error:
        print(
            f"pilot: program: {error.filename}: {error.strerror}: make room on the boot disk or "
            "mend it (`df -h`, `df -i`, `dmesg`), then run it again"
        )
        return 1
    status = 0
    if steps:
        sys.path.insert(0, str(root / LIB))
        from node.__main__ import main as node  # type: ignore[import-not-found] # noqa: PLC0415

        status = int(node(steps))
    units = root / LIB / "units"
    if not status and units.is_dir():
        # Not before: where a step fails, the pilot-node of the older script runs on, and reads the
        # units of its own.
        clear(units, carried)
    return status


if __name__ == "__main__":
    os.umask(0o022)
    sys.exit(main(Path(sys.argv[1] or "/"), sys.argv[2:]))
