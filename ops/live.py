"""The fleet on one screen, as it changes (`pilot-fleet live`).

One thread looks, at the pace of `--every`, and all widgets show what it found. An order is given in
a thread of its own, which sees the fleet by the same looks.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Final

from rich.text import Text
from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message

from ops import run as runs
from ops.cli_options import GlobalOptions
from ops.errors import FINE, INTERRUPTED, OpsError
from ops.fleet import Fleet
from ops.google import Cloud
from ops.live_orders import PROPOSALS, OrderDesk, Proposal
from ops.live_rows import LiveState, clock
from ops.live_screens import AskScreen, FleetScreen, VmScreen
from ops.looks import FleetLook, FleetLooks
from ops.plan import Await
from ops.terminal import complain, printable, say

_CONSOLE: Final = 4 * 1024  # bytes of a VM's console
_CONSOLE_LINES: Final = 20
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Looked(Message):
    """A look has come in."""

    def __init__(self, look: FleetLook) -> None:
        super().__init__()
        self.look = look


class Told(Message):
    """A line for the operator, about an order."""

    def __init__(self, text: str, *, is_wrong: bool = False) -> None:
        super().__init__()
        self.text, self.is_wrong = text, is_wrong


class Waits(Message):
    """How far a restart has come; "" for none."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class ConsoleRead(Message):
    """The last lines of a VM's console, or why there are none."""

    def __init__(self, vm: str, text: str) -> None:
        super().__init__()
        self.vm, self.text = vm, text


class Crashed(Message):
    """A thread has failed, which is a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class LiveApp(App[int]):
    """The program of `live`."""

    CSS = """
    * {
        scrollbar-background: ansi_default; scrollbar-background-hover: ansi_default;
        scrollbar-background-active: ansi_default; scrollbar-corner-color: ansi_default;
        scrollbar-color: ansi_bright_black; scrollbar-color-hover: ansi_bright_black;
        scrollbar-color-active: ansi_bright_black;
    }
    #head { height: 1; text-style: reverse; }
    #problem { height: auto; max-height: 3; display: none; color: ansi_red; text-style: bold; }
    #vms { height: auto; min-height: 4; max-height: 60%; scrollbar-size: 1 1; }
    #vms { background: ansi_default; }
    #vms > .datatable--cursor, #vms:focus > .datatable--cursor {
        background: ansi_default; color: ansi_default; text-style: reverse;
    }
    #vms > .datatable--header { background: ansi_default; color: ansi_default; text-style: bold; }
    #vms > .datatable--hover { background: ansi_default; }
    #online, #events, #orders {
        border-top: solid ansi_default; border-title-style: bold; border-title-color: ansi_default;
    }
    #online { height: 3; color: ansi_green; }
    #events { height: 1fr; min-height: 4; scrollbar-size: 0 0; overflow-x: hidden; }
    #orders { height: auto; max-height: 6; }
    AskScreen { align: center middle; }
    #question { width: 64; max-width: 95%; height: auto; padding: 1 2; border: heavy ansi_default; }
    Toast { width: 60; max-width: 90%; border: heavy ansi_default; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "order('drain')", "drain"),
        Binding("u", "order('undrain')", "undrain"),
        Binding("r", "order('restart')", "restart"),
        Binding("p", "order('pause')", "pause"),
        Binding("g", "order('roll_go')", "roll go"),
        Binding("x", "order('roll_reject')", "reject"),
        Binding("q", f"leave({FINE})", "quit"),
        Binding("ctrl+c", f"leave({INTERRUPTED})", show=False, priority=True),
    ]

    def __init__(
        self,
        *,
        first: FleetLook,
        every: float,
        look: Callable[[], FleetLook],
        desk: OrderDesk,
        context: str = "",
    ) -> None:
        """`first` was successful."""
        # The terminal's own colours: right on dark and on light ones.
        super().__init__(ansi_color=True)
        assert first.fleet is not None
        self.theme = "ansi-dark"
        self.state = LiveState(context=context, fleet=first.fleet)
        self.state.take_in(first)
        self._first, self._every, self.look_now, self.desk = first, every, look, desk
        self._over = threading.Event()
        self._looked_at = time.monotonic()
        self._base = FleetScreen(self.state, self._enter)

    async def on_mount(self) -> None:
        await self.push_screen(self._base)
        self._log_events(self._first)
        if not self.is_headless:
            for each in _ENDS:
                asyncio.get_running_loop().add_signal_handler(each, self.exit, INTERRUPTED)
        self._in_thread(self._keep_looking)

    def on_unmount(self) -> None:
        self._over.set()

    # Looking

    def _keep_looking(self) -> None:
        while True:
            # A restart looks too: then the next look is due later.
            left = self._looked_at + self._every - time.monotonic()
            if left > 0:
                if self._over.wait(left):
                    return
                continue
            self._look()

    def _look(self) -> FleetLook:
        """Look, and have it shown. For threads."""
        found = self.look_now()
        self._looked_at = time.monotonic()
        self._post(Looked(found))
        return found

    def _see(self) -> Fleet:
        """Look, for an order. OpsError where that fails."""
        found = self._look()
        if found.fleet is None:
            assert found.error is not None
            raise found.error
        return found.fleet

    def on_looked(self, message: Looked) -> None:
        self.show(message.look)

    def show(self, look: FleetLook) -> None:
        """Show what a look has found."""
        self.state.take_in(look)
        self._log_events(look)
        self._show_again()

    def _log_events(self, look: FleetLook) -> None:
        for event in look.events:
            style = "red" if event.begins else "green"
            self._base.write(Text(f"{clock(event.time)} {event.said}", style=style))

    def _show_again(self) -> None:
        for each in self.screen_stack:
            if isinstance(each, FleetScreen | VmScreen):
                each.show()

    def _enter(self, name: str) -> None:
        self.push_screen(VmScreen(self.state, name, lambda: self._read_console(name)))

    def _read_console(self, name: str) -> None:
        """Read a VM's console in a thread."""

        def read() -> None:
            try:
                # It may be gone since its screen was opened.
                vm = self.state.fleet.vm(name)
                text, _ = self.desk.cloud.serial(vm.instance.zone, name, -_CONSOLE)
            except OpsError as error:
                text = str(error)
            lines = printable(text).splitlines()[-_CONSOLE_LINES:]
            self._post(ConsoleRead(name, "\n".join(lines) or "it is empty"))

        self._in_thread(read)

    def on_console_read(self, read: ConsoleRead) -> None:
        for each in self.screen_stack:
            if isinstance(each, VmScreen) and each.vm == read.vm:
                each.show_console(read.text)

    # Orders

    def action_order(self, kind: str) -> None:
        """Ask whether to give an order for the VM that is shown or chosen."""
        if isinstance(self.screen, AskScreen):
            return
        name = self.screen.vm if isinstance(self.screen, VmScreen) else self._base.chosen
        try:
            vm = self.state.fleet.vm(name)
        except OpsError as error:
            self._tell(str(error), is_wrong=True)
            return
        proposal = PROPOSALS[kind](self.state.fleet, vm)
        if isinstance(proposal, str):
            self._tell(proposal, is_wrong=True)
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self._in_thread(lambda: self._give(proposal))

        self.push_screen(AskScreen(proposal), answered)

    def _give(self, proposal: Proposal) -> None:
        def tell(text: str) -> None:
            self._post(Told(text))

        try:
            fleet, shown = self.state.fleet, _Shown(self._post)
            self.desk.carry_out(proposal, fleet, ask=self._see, say=tell, progress=shown)
        except OpsError as error:
            self._post(Told(f"{proposal.what}: {error}", is_wrong=True))

    def on_told(self, message: Told) -> None:
        self._tell(message.text, is_wrong=message.is_wrong)

    def _tell(self, text: str, *, is_wrong: bool) -> None:
        style = "red" if is_wrong else ""
        self._base.write(Text(f"{clock(time.time())} {text}", style=style))
        if isinstance(self.screen, VmScreen):
            # It shows no events. Markup would be read in it.
            self.notify(text, severity="error" if is_wrong else "information", markup=False)

    def on_waits(self, message: Waits) -> None:
        self.state.waits = message.text
        self._show_again()

    # Ending

    def on_crashed(self, message: Crashed) -> None:
        raise message.error

    def action_leave(self, code: int) -> None:
        """End, with this exit code."""
        self.exit(code)

    def _in_thread(self, work: Callable[[], object]) -> None:
        # Not Textual's: the end of the program would wait for its threads, and so for an API that
        # does not answer.
        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised again, where it ends the program
                self._post(Crashed(error))

        threading.Thread(target=run, daemon=True).start()

    def _post(self, message: Message) -> None:
        # The program may be at its end.
        with suppress(RuntimeError):
            self.post_message(message)


class _Shown(runs.Progress):
    """How far a restart has come, for the screen."""

    def __init__(self, post: Callable[[Message], None]) -> None:
        self._post = post

    def shown(self, waiting: Await | None) -> None:
        self._post(Waits("" if waiting is None else f"restart: {runs.waiting(waiting)}"))


def run(
    settings: GlobalOptions, cloud: Cloud, looks: FleetLooks, first: FleetLook, every: float
) -> int:
    """Show the fleet until the operator leaves; the exit code."""
    desk = OrderDesk(cloud=cloud, by=settings.by, poll=settings.poll)
    app = LiveApp(
        first=first, every=every, look=looks.next, desk=desk, context=settings.context_in_use
    )
    # The garbage collector need not walk the loaded modules after each look: they stay loaded.
    gc.freeze()
    code = app.run()
    desk.end()
    if desk.interrupted:
        complain(runs.interrupted(desk.interrupted))
    if desk.given:
        say(f"what was ordered stands without this screen: {'; '.join(desk.given.values())}")
    return FINE if code is None else code
