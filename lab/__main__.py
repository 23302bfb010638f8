"""`python -m lab serve --state DIR [--port N]`: serve until SIGTERM or SIGINT."""

import argparse
import json
import logging
import signal
import sys
import threading
from pathlib import Path

from lab import NAME
from lab.server import banner, serve
from lab.store import StoreError


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code: 0, or 1 with a sentence on stderr."""
    parser = argparse.ArgumentParser(prog="lab", description=f"A {NAME}.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("serve", help="serve the API on the loopback interface")
    command.add_argument("--state", type=Path, required=True, help="directory that holds the state")
    command.add_argument(
        "--port", type=int, default=0, help="port; 0, the default, takes a free one"
    )
    command.add_argument(
        "--print-settings",
        action="store_true",
        help="print url and Pulumi settings as one line of JSON once it serves",
    )
    command.add_argument("--verbose", action="store_true", help="log every request")
    options = parser.parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        with serve(options.state, options.port) as serving:
            logging.getLogger("lab").info(banner(serving))
            if options.print_settings:
                settings = {"url": serving.url, "settings": serving.settings()}
                sys.stdout.write(json.dumps(settings) + "\n")
                sys.stdout.flush()
            stop.wait()
    except (StoreError, OSError) as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
