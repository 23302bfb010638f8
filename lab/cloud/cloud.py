"""The whole cloud: the API, its machines, and a metadata server per machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.cloud.metadata.server import MetadataServers
from lab.cloud.server import Serving, listen, serve
from lab.machines.driver import Driver, NoMachines

DRIVERS: Final = ("none", "qemu", "container")


class _Stopped:
    """Tells the API which machines powered themselves off."""

    def __init__(self) -> None:
        self._serving: Serving | None = None

    def attach(self, serving: Serving) -> None:
        self._serving = serving

    def __call__(self, path: str) -> None:
        # The API finds machines that stopped before it was there in its recovery.
        if self._serving is not None:
            self._serving.lab.compute.machine_stopped(path)


@contextmanager
def run(
    state: Path, *, driver: str = "none", port: int = 0, cache: Path | None = None
) -> Iterator[tuple[Serving, MetadataServers]]:
    """Serve a cloud with its state in `state` until the block ends; its machines run on.

    `driver` is one of `DRIVERS`; `cache` is where the machines' image is kept. StoreError where
    the state cannot be used, MachineError where the driver cannot, OSError where the port is taken.
    """
    servers, stopped = MetadataServers(), _Stopped()
    # The port first: the driver tells machines where the API is.
    listening = listen(port)
    bound = int(listening.getsockname()[1])
    try:
        machines = _driver(driver, state, port=bound, servers=servers, stopped=stopped, cache=cache)
    except BaseException:
        listening.close()
        raise
    try:
        with serve(state, listening, machines) as serving:
            stopped.attach(serving)
            servers.attach(serving.lab)
            yield serving, servers
    finally:
        servers.close()
        close(machines)


def close(driver: Driver) -> None:
    """Let go of the machines of a driver that has any; they run on."""
    let_go = getattr(driver, "close", None)
    if let_go is not None:
        let_go()


def _driver(
    name: str,
    state: Path,
    *,
    port: int,
    servers: MetadataServers,
    stopped: _Stopped,
    cache: Path | None,
) -> Driver:
    # Imported here: a cloud without machines does not need them.
    if name == "qemu":
        from lab.machines.qemu import Qemu  # noqa: PLC0415

        return Qemu(state, metadata_endpoint=servers.endpoint, cache=cache, stopped=stopped)
    if name == "container":
        from lab.machines.container import Container  # noqa: PLC0415

        return Container(
            state, metadata_endpoint=servers.endpoint, cache=cache, stopped=stopped, api_port=port
        )
    return NoMachines()
