"""The screens of `live`: the fleet, one VM, and a question over either."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, RichLog, Static

from ops import live_rows
from ops.live_orders import Proposal
from ops.live_rows import Grid, GridLine, LiveState

_EVENTS: Final = 1000  # lines
_LINE: Final = "line"


class AskScreen(ModalScreen[bool]):
    """A question over the screen: yes or no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "yes"),
        Binding("n,escape", "dismiss(False)", "no"),
    ]

    def __init__(self, proposal: Proposal) -> None:
        super().__init__()
        self._proposal = proposal

    def compose(self) -> ComposeResult:
        question = Text(f"{self._proposal.question}\n\n")
        question.append("y", style="bold").append(" yes   ").append("n", style="bold").append(" no")
        yield Static(question, id="question")


class VmScreen(Screen[None]):
    """One VM."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace", "app.pop_screen", "back"),
        Binding("c", "read_console", "console"),
    ]

    def __init__(self, state: LiveState, vm: str, read: Callable[[], None]) -> None:
        """`read` has the VM's console read, and given to `show_console`."""
        super().__init__()
        self.state, self.vm, self._read = state, vm, read
        self._tail = "it is being read"

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="problem")
        with VerticalScroll():
            yield Static(id="body")
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.show()
        self.action_read_console()

    def on_resize(self) -> None:
        self.show()

    def action_read_console(self) -> None:
        self._read()

    def show_console(self, text: str) -> None:
        """Show the last lines of the console."""
        self._tail = text
        self.show()

    def show(self) -> None:
        """Show what the last look found."""
        _show_problem(self, self.state)
        fleet = self.state.fleet
        found = next((vm for vm in fleet.vms if vm.name == self.vm), None)
        if found is None:
            self.query_one("#head", Static).update(f"{self.vm} is not there any more")
            return
        head = live_rows.vm_head(found, fleet.time, self.size.width)
        self.query_one("#head", Static).update(head)
        self.query_one("#body", Static).update(live_rows.vm_body(found, self._tail))


class FleetScreen(Screen[None]):
    """The whole fleet."""

    def __init__(self, state: LiveState, enter: Callable[[str], None]) -> None:
        """`enter` shows a VM."""
        super().__init__()
        self.state, self._enter = state, enter
        self._grid: Grid | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="problem")
        yield DataTable[GridLine](cursor_type="row", cell_padding=0, id="vms")
        yield Static(id="online")
        yield RichLog(max_lines=_EVENTS, min_width=20, wrap=True, id="events")
        yield Static(id="orders")
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        self.query_one("#vms").focus()
        events = self.query_one("#events", RichLog)
        events.border_title = "events"
        # The arrows are the table's.
        events.can_focus = False
        self.query_one("#orders").border_title = "orders that stand"
        self.show()

    def on_resize(self) -> None:
        self.show()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        if event.row_key.value is not None:
            self._enter(event.row_key.value)

    def write(self, line: Text) -> None:
        """Add a line to the events."""
        self.query_one("#events", RichLog).write(line, expand=True)

    @property
    def chosen(self) -> str:
        """The VM under the cursor."""
        table = self.query_one("#vms", DataTable)
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key
        return key.value or ""

    def show(self) -> None:
        """Show what the last look found."""
        state, width = self.state, self.size.width
        head = live_rows.head(state.context, state.fleet, width)
        self.query_one("#head", Static).update(head)
        _show_problem(self, state)
        # A column is the scroll bar's.
        self._show_table(live_rows.grid(state.fleet, width - 1, stale=bool(state.problem)))
        self._show_online(width)
        said = live_rows.orders(state.fleet, state.standing)
        if state.waits:
            said.insert(0, state.waits)
        self.query_one("#orders", Static).update(Text("\n".join(said)))
        self.query_one("#orders").display = bool(said)

    def _show_table(self, grid: Grid) -> None:
        # A column for all: each cell that is drawn again costs a tenth of a millisecond.
        table: DataTable[GridLine] = self.query_one("#vms", DataTable)
        before, self._grid = self._grid, grid
        if before and before.heading == grid.heading and list(before.rows) == list(grid.rows):
            for vm, line in grid.rows.items():
                if line != before.rows[vm]:
                    table.update_cell(vm, _LINE, line)
            return
        chosen = self.chosen if table.row_count else ""
        table.clear(columns=True)
        heading = grid.heading.__rich__()
        table.add_column(heading, key=_LINE, width=heading.cell_len)
        for vm, line in grid.rows.items():
            table.add_row(line, key=vm)
        if chosen in grid.rows:
            table.move_cursor(row=table.get_row_index(chosen))

    def _show_online(self, width: int) -> None:
        online = self.query_one("#online", Static)
        values = [each for _, each in self.state.history][-width:]
        known = [each for each in values if each is not None]
        least = f", at least {min(known):,}" if known else ""
        online.border_title = f"agents online, the last {self.state.span(width)}{least}"
        online.update(live_rows.spark(values, self.state.fleet.wanted, width, 2))


def _show_problem(screen: Screen[None], state: LiveState) -> None:
    problem = screen.query_one("#problem", Static)
    problem.display = bool(state.problem)
    problem.update(Text(state.problem))
