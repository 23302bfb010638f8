"""Measures what help costs: `pilot-fleet --help` beside a program of typer and rich alone.

    python -m tools.bench.help_time [--runs N]

The other program has one command and one option of each level. Its help costs what typer and rich
cost; a command that imports Google's libraries for its help costs ten times as much. Prints the
ratio of the processor time (the least of N runs, in turns: other work on the machine only adds to
a run) and of the imports alone.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.components.fleet import ROOT

AIM: Final = 1.2
COMMAND: Final = ROOT / ".venv" / "bin" / "pilot-fleet"
COMMANDS: Final = ("status", "restart", "context")
BARE: Final = """\
from typing import Annotated
import typer
from rich.console import Console
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
@app.callback()
def options(every: Annotated[float, typer.Option(min=0.1, help="Seconds.")] = 1.0) -> None:
    "Say something."
@app.command()
def hello(name: Annotated[str, typer.Option(help="To whom.")] = "") -> None:
    "Say hello."
    Console().print(name)
app()
"""


def _processor_seconds(command: Sequence[str]) -> float:
    """What a command and its children use."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` ended with {done.returncode}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def least(commands: Sequence[Sequence[str]], runs: int) -> list[float]:
    """The least time of each command, in turns; a first turn fills caches."""
    times = [[_processor_seconds(each) for each in commands] for _ in range(runs + 1)]
    return [min(column) for column in zip(*times[1:], strict=True)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=15, help="runs of each command (default 15)")
    runs = parser.parse_args().runs
    if not COMMAND.exists():
        sys.exit(f"there is no {COMMAND}: `make venv` makes it")
    with tempfile.TemporaryDirectory() as scratch:
        bare = Path(scratch) / "bare.py"
        bare.write_text(BARE, encoding="utf-8")
        python, program = sys.executable, str(COMMAND)
        commands = [
            [python, str(bare), "--help"],
            [program, "--help"],
            [python, str(bare), "hello", "--help"],
            *([program, name, "--help"] for name in COMMANDS),
            [python, "-c", "import typer, rich.console"],
            [python, "-c", "import ops.cli"],
        ]
        alone, whole, one, *others, theirs, ours = least(commands, runs)
    ratios = {"": whole / alone}
    ratios |= {name: found / one for name, found in zip(COMMANDS, others, strict=True)}
    for name, ratio in ratios.items():
        words = " ".join(filter(None, ("pilot-fleet", name, "--help")))
        print(f"{words:<28} {ratio:.2f} times typer and rich alone (aim: at most {AIM})")
    print(f"{'imports':<28} {ours / theirs:.2f} times those of typer and rich")


if __name__ == "__main__":
    main()
