"""The `spikeloom` command: picks a subcommand, passes it the rest of the line, turns errors into exit codes.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted. Subcommands are imported when they are called, so
`spikeloom --help` does not wait for torch.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import spikeloom

USAGE = "spikeloom [--debug] COMMAND [ARGUMENTS]"


@dataclass(frozen=True)
class Command:
    """A subcommand: `module.function(argv) -> exit code`, and one line of help."""

    module: str
    function: str
    help: str


COMMANDS = {
    "train": Command("spikeloom.training.cli", "train", "Train a network from a named recipe."),
    "eval": Command("spikeloom.training.cli", "evaluate", "Evaluate a trained network."),
    "generate": Command("spikeloom.training.generate_cli", "generate", "Continue a text by a trained language model."),
    "energy": Command("spikeloom.training.energy_cli", "energy", "Synaptic operations and energy per inference."),
    "convert": Command("spikeloom.conversion.cli", "convert", "Convert a trained ReLU network to a spiking one."),
    "data": Command("spikeloom.datasets.cli", "data", "Inspect, verify, pack and show event recordings."),
    "models": Command("spikeloom.models.cli", "models", "List the registered models, or show one in full."),
    "doctor": Command("spikeloom.doctor", "doctor", "Show what works on this machine, and how to mend what does not."),
}


def print_help(console: Console) -> None:
    """Print usage, commands and options."""
    grid = Table.grid(padding=(0, 3))
    grid.add_row("[bold]Commands[/]")
    for name, command in COMMANDS.items():
        grid.add_row(f"  [cyan]{name}[/]", command.help)
    grid.add_row()
    grid.add_row("[bold]Options[/]")
    grid.add_row("  [cyan]-h, --help[/]", "Show this help; after a command, the help of that command.")
    grid.add_row("  [cyan]--version[/]", "Show the version.")
    grid.add_row("  [cyan]--debug[/]", "Show the whole traceback when a command fails.")
    console.print(f"[bold]Usage[/] {escape(USAGE)}\n")
    console.print("Spiking neural networks in PyTorch, with fused CPU and GPU kernels.\n")
    console.print(grid)


def unknown_command(name: str) -> str:
    """Say that `name` is no command, and which one was probably meant."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    return f"there is no command '{name}'.{meant} The commands are {', '.join(COMMANDS)}; see spikeloom --help."


def explains_itself(error: Exception) -> bool:
    """Whether an error is a mistake of the call or of the machine, so that its message is enough."""
    return isinstance(error, ValueError | OSError | ImportError) or type(error).__module__.startswith("spikeloom.")


def dispatch(arguments: list[str], err: Console) -> int:
    """Run one command line; return the exit code."""
    if not arguments:
        print_help(err)
        return 2
    first, *rest = arguments
    if first in ("-h", "--help"):
        print_help(Console(highlight=False))
        return 0
    if first == "--version":
        print(f"spikeloom {spikeloom.__version__}")
        return 0
    if first not in COMMANDS:
        err.print(f"[bold red]error:[/] {escape(unknown_command(first))}", soft_wrap=True)
        return 2
    command = COMMANDS[first]
    return int(getattr(import_module(command.module), command.function)(rest))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own); an error that explains itself prints no traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    # Read by OpenMP when torch is loaded: idle threads that spin would slow training fourfold where cores are shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    err = Console(stderr=True, highlight=False)
    try:
        code = dispatch([a for a in arguments if a != "--debug"], err)
        sys.stdout.flush()
    except KeyboardInterrupt:
        err.print("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone (`| head`): keep quiet, also when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug or not explains_itself(error):
            raise
        err.print(f"[bold red]error:[/] {escape(str(error) or type(error).__name__)}", soft_wrap=True)
        err.print("[dim](--debug shows where)[/]")
        return 1
    return code
