"""The CUDA backend with PTX on the CPU in the place of the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.emulator.backend import Emulated
from tests.emulator.emulator import Launch
from tests.ptx.machine import Machine
from tests.ptx.program import compiled


@dataclass
class Interpreted(Emulated):
    """As `Emulated`.

    Attributes:
        changes: mistakes to plant, texts of the sources and what stands in their place.
        clusters: how many clusters share the rows, instead of as many as there are rows.
    """

    changes: Mapping[str, str] = field(default_factory=dict)
    clusters: int | None = None

    def execute(self, launches: list[Launch], buffers: Sequence[tuple[int, int, bool]]) -> None:
        """Compiles the launches to PTX, runs them one after the other."""
        for launch in launches:
            if self.clusters:
                launch = {**launch, "grid": min(launch["grid"], self.clusters * launch["cluster"])}
            run(launch, buffers, self.capability, self.changes)


def run(
    launch: Launch,
    buffers: Sequence[tuple[int, int, bool]],
    architecture: int,
    changes: Mapping[str, str] | None = None,
) -> None:
    """Runs one launch; a `MachineError` where it does what it must not."""
    sources = [(name, text) for name, text in launch["sources"]]
    for old, new in (changes or {}).items():
        assert sum(text.count(old) for _, text in sources) == 1, f"{old!r} is to stand in the sources once"
        sources = [(name, text.replace(old, new)) for name, text in sources]
    defines = tuple((key, value) for key, value in launch["defines"])
    program = compiled(tuple(sources), defines, launch["kernel"], architecture)
    shape = (launch["grid"], launch["block"], launch["cluster"], launch["shared"])
    Machine(program, launch["argument"], shape, buffers).run()
