"""`python -m prefuse …`: the commands that come with the package."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import prefuse.dashboard as dashboard
import prefuse.doctor as doctor
from prefuse.bench import device
from prefuse.catalogue import command as catalogue
from prefuse.curate.inspection import command as inspection
from prefuse.demo import command as demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="prefuse", description="Preference optimisation, fused.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add(commands, "dashboard", dashboard, "show what a training logs, and what the literature says to look out for")
    add(commands, "demo", demo, "train a small language model on preferences and measure")
    add(
        commands, "doctor", doctor, "show what prefuse finds on this machine, and what to do where something is missing"
    )
    add(commands, "inspect", inspection, "look for what spoils training in a file of preference data")
    add(commands, "objectives", catalogue.Table, "list the objectives, or those that mention a word")
    add(commands, "show", catalogue.Page, "show an objective: formula, inputs, hyper-parameters, paper")
    what = "benchmark prefuse against other libraries"
    bench = commands.add_parser("bench", help=what, description=f"{what.capitalize()}.")
    kinds = bench.add_subparsers(dest="kind", required=True, metavar="KIND")
    add(kinds, "device", device, "check and measure the CUDA kernels")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments or ["--help"])
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has had enough: `… show simpo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def add(commands: Any, name: str, command_module: Any, what: str) -> None:
    """Adds the command `name`, from a module with `add_arguments` and a `main` that returns the exit status."""
    command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    command_module.add_arguments(command)
    command.set_defaults(run=command_module.main)


if __name__ == "__main__":
    sys.exit(main())
