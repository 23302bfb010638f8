"""A Compute Engine on this machine.

python -m lab.cloud prepare --driver DRIVER   packages and image that the driver's machines need
python -m lab.cloud serve --state DIR [...]   serve until SIGTERM or SIGINT; machines run on
python -m lab.cloud down --state DIR          end it, its machines, and all that it holds
"""

import argparse
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from lab.cloud import NAME, cloud
from lab.cloud.server import banner
from lab.cloud.store import StoreError, hold
from lab.machines import processes
from lab.machines.container import Container
from lab.machines.driver import Machine, MachineError
from lab.machines.host import ensure_packages, no_containers
from lab.machines.image import default_cache, ensure_image
from lab.machines.qemu import Qemu

LOG = logging.getLogger("lab")


def main(arguments: list[str]) -> int:
    """Run the command line; return 0, or 1 (130 where interrupted) with a sentence on stderr."""
    options = _parser().parse_args(arguments)
    level = logging.DEBUG if options.verbose else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    try:
        if "state" in options:
            # Processes of this lab are recognised by this path, so it must be the real one.
            options.state = options.state.resolve()
        {"prepare": _prepare, "serve": _serve, "down": _down}[options.command](options)
    except (StoreError, MachineError, OSError) as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("lab: interrupted; the same command continues from there\n")
        return 130
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
    prepare.add_argument("--packages", action="store_true", help="the packages alone, no image")
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
    if options.driver == "container" and (why := no_containers()):
        message = f"{why} (or choose the qemu driver)"
        raise MachineError(message)
    installed = ensure_packages(options.driver)
    if installed:
        LOG.info("installed %s", ", ".join(installed))
    if not options.packages:
        ensure_image(default_cache())


def _serve(options: argparse.Namespace) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    options.state.mkdir(parents=True, exist_ok=True)
    _choose_driver(options.state, options.driver)
    with cloud.run(options.state, driver=options.driver, port=options.port) as (serving, _):
        LOG.info("%s", banner(serving))
        if options.print_settings:
            settings = {"url": serving.url, "settings": serving.settings()}
            sys.stdout.write(json.dumps(settings) + "\n")
            sys.stdout.flush()
        stop.wait()


def _choose_driver(state: Path, driver: str) -> None:
    """Record the driver of this state's machines: `down` needs it.

    StoreError where the lab is served already, MachineError where it has another driver's machines:
    only that one can end them.
    """
    if (server := _server(state)) is not None:
        message = f"{state} is in use by process {server}; stop it or choose another directory"
        raise StoreError(message)
    before = _driver(state)
    if before not in (None, driver):
        if any(state.glob("machines/*/machine.json")):
            message = (
                f"{state} has machines of the {before} driver: `--driver {before}` goes on with"
                f" them, `python -m lab.cloud down --state {state}` ends them"
            )
            raise MachineError(message)
        _end_machines(state)
    (state / "driver").write_text(f"{driver}\n")


def _server(state: Path) -> int | None:
    """Return the process that serves the lab in `state`, or None.

    It holds the store's lock while it lives. A process id alone may be another process's by now.
    """
    try:
        with (state / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read())
    except FileNotFoundError:
        return None
    except ValueError:
        message = f"{state} is just being opened by another process: try again"
        raise StoreError(message) from None
    return None


def _driver(state: Path) -> str | None:
    """Return what runs the machines in `state`; None before it was ever served."""
    with suppress(FileNotFoundError):
        return (state / "driver").read_text().strip()
    return None


def _end_machines(state: Path) -> None:
    """End the machines in `state` and remove what their driver has on this machine.

    MachineError, with the rest left as it is, where a machine cannot be ended.
    """
    _refuse_moved(state)

    def nowhere(_: Machine) -> tuple[str, int]:
        # Machines that are about to end need no metadata server.
        return ("127.0.0.1", 9)

    name = _driver(state)
    # An unknown driver (the state, or a part of it, was removed): try both.
    unknown = name not in cloud.DRIVERS
    if name == "qemu" or unknown:
        Qemu(state, metadata_endpoint=nowhere).shutdown()
    if name == "container" or (unknown and os.geteuid() == 0):
        Container(state, metadata_endpoint=nowhere, api_port=9).shutdown()


def _refuse_moved(state: Path) -> None:
    """MachineError where a machine runs that was started while the state was elsewhere: its command
    line does not name this lab."""
    for folder in state.glob("machines/*"):
        pid = processes.find(folder / "pid", f"/machines/{folder.name}")
        if pid is not None and processes.find(folder / "pid", str(folder)) is None:
            message = (
                f"process {pid} runs {folder.name} and was started when {state} was in another"
                " place: move it back there first, or end the process"
            )
            raise MachineError(message)


def _down(options: argparse.Namespace) -> None:
    state = options.state
    pid = _server(state)
    if pid is not None:
        processes.stop(pid, 30)
    if not state.exists():
        _end_machines(state)
        return
    # Hold the lock, so that a server that is just starting starts no machines.
    with hold(state / "lock"):
        _end_machines(state)
        shutil.rmtree(state)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
