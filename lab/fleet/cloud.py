"""The lab's cloud: start it, ask it, and start its VMs as an operator would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

from components.config import FleetConfig
from lab.fleet import checkout
from lab.fleet.errors import DemoError, until
from lab.machines import processes
from lab.machines.host import no_containers

API = "http://127.0.0.1:8480"
_MACHINES = {"qemu": "QEMU guests", "container": "containers"}
"""By driver."""


def choose_driver() -> tuple[str, str]:
    """The driver, and a line that says why that one. DemoError for an unknown name."""
    asked = os.environ.get("LAB_DRIVER", "")
    if asked and asked not in _MACHINES:
        raise DemoError(f"LAB_DRIVER is {asked!r}: choose {' or '.join(_MACHINES)}")
    here = "" if asked else _driver_here()
    here = here if here in _MACHINES else ""
    return judge_drivers(asked, here, "" if asked or here else no_containers())


def judge_drivers(asked: str, here: str, no_container: str) -> tuple[str, str]:
    """The driver and the reason: what was asked for, what the machines that are here have, or
    containers unless `no_container` says why there can be none."""
    chosen = asked or here or ("qemu" if no_container else "container")
    if asked:
        why = f"LAB_DRIVER={asked}"
    elif here:
        why = f"this lab's machines are; to change: `make lab-down`, then LAB_DRIVER={_other(here)}"
    elif no_container:
        why = f"{no_container}; LAB_DRIVER decides by hand"
    else:
        why = f"this is root, and they work here; LAB_DRIVER=qemu for {_MACHINES['qemu']}"
    return chosen, f"{_MACHINES[chosen]}: {why}"


def _other(driver: str) -> str:
    return next(name for name in _MACHINES if name != driver)


def _driver_here() -> str:
    """The driver of the lab that is here: it serves, or its machines are left. "" for none."""
    serves = lab_status() is not None
    # Its machines outlive the cloud's process, and only that driver can end them.
    if not serves and not any(checkout.STATE.glob("machines/*/machine.json")):
        return ""
    marker = checkout.STATE / "driver"
    return marker.read_text().strip() if marker.exists() else "?"


def refuse_another(wanted: str) -> None:
    """DemoError where a lab of another driver is here, or one of another checkout answers."""
    here = _driver_here()
    if here and here != wanted:
        raise DemoError(
            f"a lab with the {here} driver is here: `make lab-down` first, "
            f"or `LAB_DRIVER={here} make lab` to go on with it"
        )


def serve(wanted: str) -> None:
    """Serves the cloud with the driver `wanted` in a process of its own, unless one serves."""
    if (status := lab_status()) is not None:
        print(f"  is up: {status['driver']}", flush=True)
        return
    port = API.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "lab.cloud", "serve", "--driver", wanted, "--port", port]
    with (checkout.STATE / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--state", str(checkout.STATE)],
            cwd=checkout.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(
            lambda: lab_status() is not None or process.poll() is not None,
            60,
            f"the cloud does not answer at {API}: see {checkout.STATE / 'log'}",
        )
        status = lab_status()
    except BaseException:
        # It would come up too late, perhaps after `make lab-down`.
        processes.end(process)
        raise
    if status is None or process.poll() is not None:
        last = (checkout.STATE / "log").read_text(errors="replace").strip().splitlines()[-1:]
        raise DemoError(f"the cloud does not come up: {''.join(last)}")
    print(f"  {status['driver']}", flush=True)


def lab_status() -> dict[str, Any] | None:
    """What the cloud says of itself; None where none answers.

    DemoError where the one that answers is not this checkout's.
    """
    try:
        status = fetch(f"{API}/lab/status")
    except (OSError, ValueError, HTTPException):
        return None
    if (state := status.get("state")) != str(checkout.STATE.resolve()):
        whose = f"the lab in {state}" if state else "another program, or an older lab"
        raise DemoError(f"{API} is {whose}: end that one first (`make lab-down` in its checkout)")
    return status


def states(config: FleetConfig) -> dict[str, str]:
    """The states of the fleet's VMs that are there, by name. DemoError where there is no lab."""
    if (status := lab_status()) is None:
        raise DemoError(f"the cloud answers no longer at {API}: see {checkout.STATE / 'log'}")
    there: dict[str, str] = status["instances"]
    return {name: there[path] for name in config.fits if (path := place(config, name)) in there}


def place(config: FleetConfig, vm: str) -> str:
    """The path of a VM in the API."""
    return f"projects/{config.project}/zones/{config.zone}/instances/{vm}"


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
            compute(place(config, name), "/start")


def compute(path: str, action: str = "", *, method: str = "POST") -> None:
    """Changes a resource of the lab's Compute Engine, and waits until that is done.

    Waits first for an operation that is under way on it.
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
        raise DemoError(f"{path}: no answer ({error}): see {checkout.STATE / 'log'}") from None
    if failed := operation.get("error"):
        raise DemoError(f"{path}: {failed['errors'][0]['message']}")


def _finished(operation: dict[str, Any]) -> dict[str, Any]:
    link = f"{API}/compute/v1/projects/{operation['selfLink'].partition('/projects/')[2]}"
    while operation["status"] != "DONE":
        operation = fetch(f"{link}/wait", {}, timeout=150)
    return operation


def fetch(
    url: str, body: dict[str, Any] | None = None, *, method: str | None = None, timeout: float = 5
) -> dict[str, Any]:
    """A JSON document. OSError where there is no answer or it is a refusal."""
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


def reason(error: urllib.error.HTTPError) -> str:
    """What a refusal says."""
    try:
        return str(json.load(error)["error"]["message"])
    except (KeyError, TypeError, ValueError):
        return str(error)
