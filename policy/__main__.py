"""Serves the policy pack. The engine runs this folder as a program, wherever it stands."""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# The rules are a package, so its parent must be on the path, and first: the engine puts the folder
# itself there, where a module of ours could hide one of another package.
sys.path.insert(0, str(HERE.parent))
importlib.import_module(f"{HERE.name}.pack").serve()
