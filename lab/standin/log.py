"""Log lines in the two formats of the real one: Go's slog, text or JSON, on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Final, TextIO

LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warn": 30, "error": 40}
FORMATS: Final = ("text", "json")


class Log:
    """Writes a level, a message and fields; a line below the level costs one comparison."""

    def __init__(self, level: str, style: str, out: TextIO | None = None) -> None:
        self._least = LEVELS[level]
        self._json = style == "json"
        self._out = out or sys.stderr

    def debug(self, message: str, **fields: object) -> None:
        self._write("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        self._write("info", message, fields)

    def warn(self, message: str, **fields: object) -> None:
        self._write("warn", message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: Mapping[str, object]) -> None:
        if LEVELS[level] < self._least:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03}Z"
        head = {"time": stamp, "level": level.upper(), "msg": message}
        if self._json:
            line = json.dumps({**head, **fields}, default=str)
        else:
            line = " ".join(f"{key}={_text(value)}" for key, value in {**head, **fields}.items())
        try:
            self._out.write(line + "\n")
            self._out.flush()
        except OSError:
            # A full disk or a closed pipe under the log must not stop the registry.
            return


def _text(value: object) -> str:
    text = str(value)
    return json.dumps(text) if not text or set(text) & set(' "=\\\n\t') else text
