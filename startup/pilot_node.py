#!/usr/bin/python3 -IS
"""pilot-node: runs the modules that the startup script installed."""

import sys
from pathlib import Path

# Isolated (-I), and by this file's place: nothing in the caller's directory or environment is
# imported. Without site (-S), which slows the start.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib" / "pilot"))

from node.__main__ import main  # type: ignore[import-not-found]

sys.exit(main(sys.argv[1:]))
