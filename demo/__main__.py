"""The fleet on this machine.

    python -m demo up       boot it: cloud, `pulumi up`, VMs, agents (what `make lab` does)
    python -m demo status   what is there
    python -m demo down     end it and leave nothing

LAB_DRIVER is `qemu` (the default; no root needed) or `container` (root; native speed).
PILOT_RENDEZVOUS is the path of a real rendezvous binary; without it a stand-in is built, which
says in its log and on its page that it is one. Every step may be repeated after an interruption:
Ctrl-C waits for what is under way, a second one cuts it off.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from components.config import DASHBOARD_PORT, PROJECT_NAME, FleetConfig
from components.reading import ConfigError
from components.stack_file import parse

ROOT = Path(__file__).resolve().parent.parent
STACK = "lab"
STATE = ROOT / ".lab"
API = "http://127.0.0.1:8480"
DRIVERS = ("qemu", "container")
# Four QEMU guests at once on two cores needed up to 103 s from power on to the script (FACTS);
# minutes more than that say that something is wrong.
_PATIENCE_S = 900.0
_RENDEZVOUS = ROOT / "artifacts" / "lab" / "pilot-rendezvous"


class DemoError(Exception):
    """What went wrong and what to do, in a sentence."""


@dataclass
class Phases:
    """Says what is being done, and in the end how long each phase took (seconds)."""

    took: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"· {name} …", flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            self.took[name] = time.monotonic() - start

    def report(self) -> str:
        width = max(map(len, self.took))
        lines = [f"  {name:<{width}}  {seconds:6.1f} s" for name, seconds in self.took.items()]
        return "\n".join([*lines, f"  {'in all':<{width}}  {sum(self.took.values()):6.1f} s"])


def fleet() -> FleetConfig:
    """The fleet of the lab's stack. DemoError where its file says none."""
    path = ROOT / f"Pulumi.{STACK}.yaml"
    try:
        return parse(path.read_text(encoding="utf-8"), path.name)
    except (ConfigError, OSError, UnicodeDecodeError) as error:
        raise DemoError(f"{path.name}: {error}") from None


def driver() -> str:
    """What runs the machines. DemoError for a name that is none."""
    name = os.environ.get("LAB_DRIVER", DRIVERS[0])
    if name not in DRIVERS:
        raise DemoError(f"LAB_DRIVER is {name!r}: choose {' or '.join(DRIVERS)}")
    return name


def up() -> None:
    """Boots the fleet and waits until every agent is online."""
    wanted, config = driver(), fleet()
    refuse_another(wanted)
    STATE.mkdir(exist_ok=True)
    with (STATE / "demo.lock").open("a+") as mine:
        # Held until this process ends, however it ends, and Pulumi with it.
        if not take(mine):
            raise DemoError(
                "another `make lab` is at work in this checkout, or the Pulumi that one left"
            )
        boot(config, wanted, mine)


def take(lock: IO[str]) -> bool:
    """Takes the lock; False where somebody is at work.

    It names the session of a Pulumi that runs: plugins that have outlived theirs are ended.
    """
    if _locks(lock):
        return True
    lock.seek(0)
    leader = lock.read()
    if not leader.isdecimal() or Path(f"/proc/{leader}").exists():
        return False
    _end_session(int(leader))
    with suppress(DemoError):
        until(lambda: _locks(lock), 5, "somebody else holds it")
        return True
    return False


def _locks(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def boot(config: FleetConfig, wanted: str, mine: IO[str]) -> None:
    """Boots the fleet with a driver, phase by phase, and says how long each has taken."""
    phases = Phases()
    prepare = [sys.executable, "-m", "lab", "prepare", "--driver", wanted]
    # What takes no time to find missing comes before what takes minutes to build.
    with phases("packages"):
        run([*prepare, "--packages"])
    with phases("Pulumi"):
        run([sys.executable, "toolchain/toolchain.py", "ensure"])
    with phases("image"):
        run(prepare)
    with phases("binaries"):
        run([sys.executable, "toolchain/toolchain.py", "artifacts"])
        rendezvous()
    with phases("the cloud"):
        cloud(wanted)
    with phases("pulumi up"):
        carry_out(mine)
    with phases("VMs boot, agents register"):
        start_what_is_off(config)
        wait_for(config)
    print(table(config))
    print(phases.report())
    print(f"\nThe dashboard: http://127.0.0.1:{dashboard_port(config)}   `make lab-down` ends it.")


def refuse_another(wanted: str) -> None:
    """DemoError where a lab of another driver is here, or one of another checkout answers."""
    serves = lab_status() is not None
    marker = STATE / "driver"
    runs = marker.read_text().strip() if marker.exists() else "?"
    # Its machines run on when the cloud's process is gone, and are that driver's to end.
    machines = any(STATE.glob("machines/*/machine.json"))
    if runs != wanted and (serves or machines):
        raise DemoError(
            f"a lab with the {runs} driver is here: `make lab-down` first, "
            f"or `LAB_DRIVER={runs} make lab` to go on with it"
        )


def carry_out(lock: IO[str]) -> None:
    """Runs `pulumi up`, after what one that was cut off has left is put right.

    Pulumi holds `lock` too: where this process is killed, no second one works beside it.
    """
    # A `pulumi up` that was killed leaves its lock behind; nobody else uses this backend.
    for left in (backend() / ".pulumi" / "locks").rglob("*.json"):
        left.unlink()
    toolchain = [sys.executable, "toolchain/toolchain.py"]
    # The lab's own, whatever backend its user has chosen: it goes with the lab.
    environment = {"PILOT_FLEET_YES": "1", "PULUMI_BACKEND_URL": f"file://{backend()}"}
    if unfinished := pending():
        print("  a `pulumi up` was cut off here: looking what it has done", flush=True)
        for each in unfinished:
            take_away(each)
        refresh = ["refresh", "--stack", STACK, "--yes", "--skip-preview", "--non-interactive"]
        run(
            [*toolchain, "exec", "--", "pulumi", *refresh, "--clear-pending-creates"],
            holding=lock,
            **environment,
        )
    try:
        run([*toolchain, "up", STACK], holding=lock, **environment)
    except DemoError as error:
        raise DemoError(
            f"{error}\nWhere something exists already (409), a run that was cut off has made it: "
            "`make lab-down`, then `make lab`"
        ) from None


def pending() -> list[dict[str, Any]]:
    """What Pulumi had begun and not finished when it was killed, as its state has it."""
    state = backend() / ".pulumi" / "stacks" / PROJECT_NAME / f"{STACK}.json"
    try:
        latest = json.loads(state.read_text())["checkpoint"]["latest"] or {}
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError):
        raise DemoError(
            f"{state} is no state of a stack: `make lab-down`, then `make lab`"
        ) from None
    found: list[dict[str, Any]] = latest.get("pending_operations") or []
    return found


def take_away(operation: dict[str, Any]) -> None:
    """Deletes what a creation that was cut off has made in the lab: Pulumi makes it again.

    Only of compute: there a machine or a disk takes long enough to be cut off at all, and what is
    there a second time is refused.
    """
    resource = operation["resource"]
    kind = re.fullmatch(r"gcp:compute/(\w+):\w+", resource["type"])
    inputs = resource.get("inputs", {})
    if operation["type"] != "creating" or kind is None or "name" not in inputs:
        return
    place = next(
        (f"{level}s/{inputs[level]}" for level in ("zone", "region") if level in inputs), "global"
    )
    path = f"projects/{fleet().project}/{place}/{_plural(kind[1])}/{inputs['name']}"
    try:
        fetch(f"{API}/compute/v1/{path}")
    except urllib.error.HTTPError as error:
        if error.code in (404, 501):
            return
        raise DemoError(f"{path}: {reason(error)}") from None
    print(f"  {inputs['name']} was half made: taken away, and made again", flush=True)
    compute(path, method="DELETE")


def _plural(kind: str) -> str:
    """A kind as the API has it in paths."""
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith("s") else f"{kind}s"


def start_what_is_off(config: FleetConfig) -> None:
    """Starts the fleet's VMs that are off, as an operator would.

    This machine was booted, or a guest was killed: to Pulumi that is no change.
    """
    until(
        lambda: "STOPPING" not in states(config).values(),
        180,
        "a VM has been STOPPING for three minutes: `make lab-status` says which one",
    )
    for name, state in states(config).items():
        if state == "TERMINATED":
            print(f"  {name} is off: starting it", flush=True)
            compute(f"projects/{config.project}/zones/{config.zone}/instances/{name}", "/start")


def states(config: FleetConfig) -> dict[str, str]:
    """The states of the fleet's VMs that are there, by name. DemoError where there is no lab."""
    if (status := lab_status()) is None:
        raise DemoError(f"the cloud answers no longer at {API}: see {STATE / 'log'}")
    parent = f"projects/{config.project}/zones/{config.zone}/instances"
    there: dict[str, str] = status["instances"]
    return {name: there[path] for name in config.fits if (path := f"{parent}/{name}") in there}


def compute(path: str, action: str = "", *, method: str = "POST") -> None:
    """Changes a resource of the lab's Compute Engine, and waits until that is done.

    What is under way on it is waited for first.
    """
    scope = path.rsplit("/", 2)[0]
    try:
        for each in fetch(f"{API}/compute/v1/{scope}/operations").get("items", []):
            if each["targetLink"].endswith(f"/{path}"):
                _finished(each)
        operation = _finished(fetch(f"{API}/compute/v1/{path}{action}", {}, method=method))
    except urllib.error.HTTPError as error:
        raise DemoError(f"{path}: {reason(error)}") from None
    except (OSError, ValueError, HTTPException) as error:
        raise DemoError(f"{path}: no answer ({error}): see {STATE / 'log'}") from None
    if failed := operation.get("error"):
        raise DemoError(f"{path}: {failed['errors'][0]['message']}")


def _finished(operation: dict[str, Any]) -> dict[str, Any]:
    link = f"{API}/compute/v1/projects/{operation['selfLink'].partition('/projects/')[2]}"
    while operation["status"] != "DONE":
        operation = fetch(f"{link}/wait", {}, timeout=150)
    return operation


def reason(error: urllib.error.HTTPError) -> str:
    """What a refusal says."""
    try:
        return str(json.load(error)["error"]["message"])
    except (KeyError, TypeError, ValueError):
        return str(error)


def backend() -> Path:
    """Where the lab's stack keeps its state."""
    folder = STATE / "pulumi"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rendezvous() -> None:
    """Puts the rendezvous binary where the lab's stack looks for it."""
    real = os.environ.get("PILOT_RENDEZVOUS")
    _RENDEZVOUS.parent.mkdir(parents=True, exist_ok=True)
    if real is None:
        run([sys.executable, "-m", "standin.build", str(_RENDEZVOUS)])
        print("  the rendezvous is a stand-in (PILOT_RENDEZVOUS names a real one)", flush=True)
        return
    if not Path(real).is_file():
        raise DemoError(f"PILOT_RENDEZVOUS is {real}: there is no such file")
    part = _RENDEZVOUS.with_suffix(".part")
    shutil.copy(real, part)
    part.replace(_RENDEZVOUS)


def cloud(wanted: str) -> None:
    """Serves the cloud with the driver `wanted` in a process of its own, unless one serves."""
    if (status := lab_status()) is not None:
        print(f"  is up: {status['driver']}", flush=True)
        return
    port = API.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "lab", "serve", "--driver", wanted, "--port", port]
    with (STATE / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--state", str(STATE)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    until(
        lambda: lab_status() is not None or process.poll() is not None,
        60,
        f"the cloud does not answer at {API}: see {STATE / 'log'}",
    )
    status = lab_status()
    if status is None or process.poll() is not None:
        last = (STATE / "log").read_text(errors="replace").strip().splitlines()[-1:]
        raise DemoError(f"the cloud does not come up: {''.join(last)}")
    print(f"  {status['driver']}", flush=True)


def wait_for(config: FleetConfig) -> None:
    """Waits until every agent is online at the registry, and says how far it is."""
    said = ""
    deadline = time.monotonic() + _PATIENCE_S
    start = time.monotonic()
    while True:
        online = registered(config)
        now = f"{online or 0}/{config.agents} agents online"
        if online is None:
            now = "the registry does not answer yet"
        if now != said:
            print(f"  {time.monotonic() - start:5.0f} s  {now}", flush=True)
            said = now
        if online is not None and online >= config.agents:
            return
        if failed := failed_scripts(config):
            raise DemoError("the startup script failed:\n" + "\n".join(failed))
        if time.monotonic() > deadline:
            raise DemoError(
                f"after {_PATIENCE_S:.0f} s: {now}. The VMs' consoles tell more: "
                f"{STATE}/machines/*/console.log; the cloud's log: {STATE / 'log'}"
            )
        time.sleep(1)


def failed_scripts(config: FleetConfig) -> list[str]:
    """The VMs whose startup script ended with an error, each with its last words."""
    found = []
    for name in config.fits:
        path = f"projects/{config.project}/zones/{config.zone}/instances/{name}/serialPort"
        try:
            console = str(fetch(f"{API}/compute/v1/{path}")["contents"])
        except (OSError, ValueError, KeyError):
            continue
        lines = [line for line in console.splitlines() if "startup-script" in line]
        ends = [line for line in lines if re.search(r"startup-script exit status \d", line)]
        if ends and not ends[-1].rstrip().endswith("status 0"):
            last = lines[max(0, lines.index(ends[-1]) - 3) : lines.index(ends[-1])]
            found.append("\n".join([f"  {name}:", *(f"    {line.strip()}" for line in last)]))
    return found


def registered(config: FleetConfig) -> int | None:
    """How many agents are online at the registry; None while it does not answer."""
    stats = dashboard(config, "/api/stats")
    return None if stats is None else int(stats["active_nodes"])


def dashboard(config: FleetConfig, path: str) -> dict[str, Any] | None:
    """An answer of the rendezvous' dashboard; None while there is none."""
    try:
        return fetch(f"http://127.0.0.1:{dashboard_port(config)}{path}")
    except (OSError, ValueError, HTTPException):
        return None


def dashboard_port(config: FleetConfig) -> int:
    """The port of this machine's loopback that leads to the dashboard."""
    path = f"/lab/projects/{config.project}/zones/{config.zone}/instances/{config.rendezvous.name}"
    return int(fetch(f"{API}{path}/forward", {"port": DASHBOARD_PORT})["port"])


def table(config: FleetConfig) -> str:
    """The fleet as it is: VMs, agents wanted and online."""
    status = lab_status()
    if status is None:
        return "There is no lab: `make lab` boots one."
    there = states(config)
    rows = [("VM", "machine type", "state", "agents")]
    for name, fit in config.fits.items():
        is_rendezvous = name == config.rendezvous.name
        agents = "" if is_rendezvous else str(fit.agents)
        rows.append((name, fit.machine.name, there.get(name, "absent"), agents))
    online = registered(config)
    total = "registry down" if online is None else f"{online}/{config.agents} online"
    rows.append(("", "", "", total))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def down() -> None:
    """Ends the cloud and its machines, and removes the lab's state."""
    lock = STATE / "demo.lock"
    if lock.exists():
        with lock.open("a+") as left:
            take(left)
    run([sys.executable, "-m", "lab", "down", "--state", str(STATE)])
    print("The lab is down; nothing of it is left.")


def lab_status() -> dict[str, Any] | None:
    """What the cloud says of itself; None where none answers.

    DemoError where the one that answers is not this checkout's.
    """
    try:
        status = fetch(f"{API}/lab/status")
    except (OSError, ValueError, HTTPException):
        return None
    if (state := status.get("state")) != str(STATE.resolve()):
        whose = f"the lab in {state}" if state else "another program, or an older lab"
        raise DemoError(f"{API} is {whose}: end that one first (`make lab-down` in its checkout)")
    return status


def fetch(
    url: str, body: dict[str, Any] | None = None, *, method: str | None = None, timeout: float = 5
) -> dict[str, Any]:
    """A JSON document. OSError where nobody answers or the answer is a refusal."""
    request = urllib.request.Request(  # noqa: S310 (loopback only)
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Authorization": "Bearer anything"},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
        answer = json.load(response)
    if not isinstance(answer, dict):
        raise ValueError(answer)
    return answer


def until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Waits for a condition. DemoError with `otherwise` where it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DemoError(otherwise)
        time.sleep(0.1)


def run(command: list[str], *, holding: IO[str] | None = None, **environment: str) -> None:
    """Runs a command in the checkout; what it prints is for who watches.

    The command also holds the file `holding` open, which names it while it runs. Ctrl-C asks it to
    end and waits for that; a second one cuts it off. What it has started ends with it.
    DemoError where it fails.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        # Nobody is asked, and no terminal is put into a mode in which Ctrl-C is a key.
        stdin=subprocess.DEVNULL,
        # So that it hears Ctrl-C once and from here, and its plugins can be found.
        start_new_session=True,
        pass_fds=() if holding is None else (holding.fileno(),),
    )
    try:
        if holding is not None:
            holding.truncate(0)
            holding.write(str(process.pid))
            holding.flush()
        try:
            _await_end(process)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            print(
                "\nlab: what is under way is ending; Ctrl-C again cuts it off",
                file=sys.stderr,
                flush=True,
            )
            _await_end(process)
            raise
    finally:
        _end_session(process.pid)
        if holding is not None:
            holding.truncate(0)
        process.wait()
    if process.returncode:
        raise DemoError(f"this failed (above is why): {' '.join(command[1:])}")


def _await_end(process: subprocess.Popen[bytes]) -> None:
    """Waits until a process has ended, and leaves it to be reaped: its id stays its own."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def _end_session(leader: int) -> None:
    """Kills what is left of a session; plugins of a Pulumi that was killed are."""
    for folder in Path("/proc").iterdir():
        with suppress(ProcessLookupError, PermissionError, ValueError):
            if os.getsid(pid := int(folder.name)) == leader:
                os.kill(pid, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Runs the command line; 0, or 1 with a sentence on stderr."""
    commands: dict[str, Callable[[], None]] = {
        "up": up,
        "status": lambda: print(table(fleet())),
        "down": down,
    }
    if len(arguments) != 1 or arguments[0] not in commands:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Being ended is being interrupted: what runs below is ended too.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        commands[arguments[0]]()
    except DemoError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlab: interrupted; `make lab` goes on, `make lab-down` ends it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
