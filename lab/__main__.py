"""A Compute Engine on this machine.

python -m lab prepare --driver DRIVER   packages and image that the driver's machines need
python -m lab serve --state DIR [...]   serve until SIGTERM or SIGINT; machines run on
python -m lab down --state DIR          end it, its machines, and all that it holds
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from lab import NAME, cloud
from lab.drivers import processes
from lab.drivers.container import Container
from lab.drivers.host import ensure_packages
from lab.drivers.qemu import Qemu
from lab.image import default_cache, ensure_image
from lab.machines import Machine, MachineError
from lab.server import banner
from lab.store import StoreError

LOG = logging.getLogger("lab")


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code: 0, or 1 with a sentence on stderr."""
    options = _parser().parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        {"prepare": _prepare, "serve": _serve, "down": _down}[options.command](options)
    except (StoreError, MachineError, OSError) as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description=f"A {NAME}.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="get what a driver's machines need")
    serve = commands.add_parser("serve", help="serve the API on the loopback interface")
    down = commands.add_parser("down", help="end a lab and leave nothing of it")
    for command in (serve, down):
        command.add_argument("--state", type=Path, required=True, help="directory of the lab")
    for command in (prepare, serve):
        command.add_argument("--driver", choices=cloud.DRIVERS, default="none")
    serve.add_argument("--port", type=int, default=0, help="port; 0, the default, takes a free one")
    serve.add_argument(
        "--print-settings",
        action="store_true",
        help="print url and Pulumi settings as one line of JSON once it serves",
    )
    for command in (prepare, serve, down):
        command.add_argument("--verbose", action="store_true", help="log every request")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    if options.driver == "none":
        return
    installed = ensure_packages(options.driver)
    if installed:
        LOG.info("installed %s", ", ".join(installed))
    ensure_image(default_cache())


def _serve(options: argparse.Namespace) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    options.state.mkdir(parents=True, exist_ok=True)
    # Who ends this lab has to know what runs its machines.
    (options.state / "driver").write_text(f"{options.driver}\n")
    with cloud.run(options.state, driver=options.driver, port=options.port) as (serving, _):
        processes_id = options.state / "pid"
        processes_id.write_text(f"{os.getpid()}\n")
        LOG.info("%s", banner(serving))
        if options.print_settings:
            settings = {"url": serving.url, "settings": serving.settings()}
            sys.stdout.write(json.dumps(settings) + "\n")
            sys.stdout.flush()
        stop.wait()
        processes_id.unlink(missing_ok=True)


def _down(options: argparse.Namespace) -> None:
    pid = processes.find(options.state / "pid", "serve")
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        if not processes.wait(pid, 30):
            processes.kill(pid)
    if not options.state.exists():
        return

    def nowhere(_: Machine) -> tuple[str, int]:
        # Machines that are about to be ended ask nobody anything any more.
        return ("127.0.0.1", 9)

    marker = options.state / "driver"
    name = marker.read_text().strip() if marker.exists() else "none"
    if name == "qemu":
        Qemu(options.state, metadata_endpoint=nowhere).shutdown()
    elif name == "container":
        Container(options.state, metadata_endpoint=nowhere, api_port=9).shutdown()
    shutil.rmtree(options.state)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
