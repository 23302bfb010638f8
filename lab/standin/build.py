"""`python -m lab.standin.build OUT`: the whole of it as one executable file.

A zip that Python 3.11 runs, with the standard library only; same sources, same bytes, so that its
sha256 can name it in a release.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
START: Final = b"#!/usr/bin/env python3\n"
_MAIN: Final = "import sys\n\nfrom standin.__main__ import run\n\nsys.exit(run())\n"
# The earliest a zip can hold: when the files were written must not matter.
_DATE: Final = (1980, 1, 1, 0, 0, 0)


def archive() -> bytes:
    """The program's bytes. Stored, not deflated: compressors differ, and it is small."""
    files = {
        f"standin/{file.name}": file.read_text(encoding="utf-8")
        for file in HERE.glob("*.py")
        if file.name != Path(__file__).name
    }
    content = io.BytesIO()
    content.write(START)
    with zipfile.ZipFile(content, "w") as out:
        for name, text in sorted({"__main__.py": _MAIN, **files}.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            out.writestr(entry, text)
    return content.getvalue()


def build(out: Path) -> None:
    """Write the program to `out`, executable, in one rename."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.write_bytes(archive())
        temporary.chmod(0o755)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def run() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.stderr.write("usage: python -m lab.standin.build OUT\n")
        return 2
    try:
        build(Path(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error.strerror or error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run())
