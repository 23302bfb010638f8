"""Serves the policy pack. The engine runs this folder as a program, wherever it stands."""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# The rules are a package, so its parent has to be found, and first: the engine puts the folder
# itself on the path, where a module of ours could hide one of somebody else's.
sys.path.insert(0, str(HERE.parent))
importlib.import_module(f"{HERE.name}.pack").serve()
