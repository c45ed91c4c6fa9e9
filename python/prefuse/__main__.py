"""`python -m prefuse …`: the commands that come with the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    from prefuse.demo import command as demo

    parser = argparse.ArgumentParser(prog="prefuse", description="Preference optimisation, fused.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, room, what in (("demo", demo, "train a small language model on preferences and measure"),):
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        room.add_arguments(command)
        command.set_defaults(run=room.main)
    options = parser.parse_args(arguments)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
