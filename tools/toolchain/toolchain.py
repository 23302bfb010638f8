#!/usr/bin/env python3
"""Pulumi for this checkout: the installed one, Pulumi's own release, or one built from source.

    toolchain.py ensure               have one: unless Pulumi 3.259 or newer is installed, fetch
                                      Pulumi's release or, where it does not come, build engine,
                                      language host and provider (minutes, once)
    toolchain.py env [--json]         print Pulumi's environment, for eval or for a program
    toolchain.py exec -- COMMAND…     run a command in that environment
    toolchain.py preview STACK […]    plan a stack with its policies (further arguments go to
                                      Pulumi); works without Google credentials, and says so
    toolchain.py up STACK […]         carry the plan out. Pulumi asks first; without a terminal
                                      PILOT_FLEET_YES=1 or --yes is needed
    toolchain.py venv [--dev]         set up .venv: the pinned requirements, and pilot-fleet
    toolchain.py artifacts            fetch pilot-daemon into artifacts/

PILOT_TOOLCHAIN is `installed`, `official` (Pulumi's release) or `source`, and decides by hand.
State is kept in .state/ unless you have chosen a backend (PULUMI_BACKEND_URL, `pulumi login`,
`backend:` in Pulumi.yaml), and PULUMI_CONFIG_PASSPHRASE is empty unless you have set it.
"""

import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - that is what is found out here
    sys.exit("Python 3.11 or newer is needed: run this with one (make finds it, or set PYTHON).")

# The package, not this file's folder, in which this file has the package's name.
sys.path[0] = str(Path(__file__).resolve().parents[2])

from tools.toolchain import build, commands  # noqa: E402

if __name__ == "__main__":
    sys.exit(build.main_guard(lambda: commands.run(sys.argv[1:], (__doc__ or "").lstrip())))
