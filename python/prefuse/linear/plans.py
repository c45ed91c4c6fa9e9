"""How the fused linear head runs: which GEMMs in which order, what is kept, in tiles of what size.

One GEMM is 2·N·H·V flops: N rows that are scored, H features, V classes. The logits always cost one, a gradient to the
hidden states one per direction, a gradient to the weight one:

============ ===================================================================== ============================
plan         what happens                                                          GEMMs
============ ===================================================================== ============================
forward      statistics of one tile of rows after the other                        1
single-pass  while a tile is there, d(statistic)/d(hidden) is made of it, without  1 + 1 per statistic with a
             the upstream gradient, which multiplies it in the backward pass       gradient
grouped      whole groups to a tile: score them, pull the gradient back at once    1 + hidden + weight
keep         d(statistic)/d(logits) of all rows is kept for the backward pass      1 + hidden + weight
recompute    the backward pass makes the logits again                              2 + hidden + weight
lists        with `sparse`: short lists of each row's probabilities are kept, and  1
             gradients are sums over them (`prefuse.linear.sparse`)
columns      the same on a GPU: of strips of rows the columns in which their       1
             probabilities are, and the mean of the rest (`prefuse.linear.columns`)
============ ===================================================================== ============================

`choose` takes sizes and wishes and looks at no tensor, so a plan can be had before there is anything to run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from prefuse._display.html import table
from prefuse.linear.costs import BLOCK_ROWS, Device, Estimate, Work, cost

__all__ = ["DEVICE_WORKSPACE_BYTES", "PLANS", "WORKSPACE_BYTES", "Job", "Plan", "choose"]

PLANS = ("forward", "single-pass", "grouped", "keep", "recompute", "lists", "columns")
"""The names of the plans, as `plan=` takes them."""

Tile = tuple[int, int]

SPARSE = ("lists", "columns")
"""Those of `sparse`: on the CPU, on a GPU."""

WORKSPACE_BYTES = 256 << 20
"""How much memory tiles may take where the caller does not say."""

DEVICE_WORKSPACE_BYTES = 640 << 20
"""The same on a GPU, where tiles take no more of it than makes them faster."""

WORTH = 1.005
"""Smaller tiles are taken where larger ones would not be faster by more than this."""

TRIED = 8
"""So many sizes of tiles, and so many numbers of them, are compared, from the largest tiles on."""

MAX_DIRECTIONS = 2
"""From so many statistics with a gradient on, to make the logits again costs less than a product for each."""

WHOLE_ROWS = 64
"""Tiles have a multiple of so many rows where there is room for them, as GEMMs like it."""

LISTED_ROWS = 512
"""Tiles of which lists are made have no more rows: enough for a GEMM, and as little fresh memory as that allows."""

STRIP = 256
"""Rows that share their columns in the plan "columns", where kernels multiply what belongs to all strips at once."""

LONG_STRIP = 1024
"""The same where PyTorch multiplies strip by strip: products of so many fill a GPU, and have few columns yet."""

NARROWEST_BLOCK = 4096
"""Classes of a block below which its GEMMs are slow: then rows are cut too."""


@dataclass(frozen=True)
class Job:
    """What is to be done, in numbers.

    Attributes:
        rows: rows that are scored; their upper bound where that is not known yet.
        features: numbers in a row of all hidden inputs together.
        classes: V.
        itemsize: bytes of a number in the matrices.
        statistics: the statistics that a gradient is wanted of.
        hidden: whether the hidden states want a gradient.
        weight: whether weight, bias or an adapter's second matrix want one.
        reference: whether the logits of a reference model are made beside.
        groups: rows of each group that an objective scores as one; None where the loss is not known here.
        apart: whether groups may be scored one by one: False where the objective looks at the whole batch.
        kept_itemsize: bytes of a number of the hidden states' gradient while it waits.
        logit_bytes: of a logit in a tile; 0: as many as `itemsize`.
        eps: from which probability on lists, or columns, have them as they are; 0: gradients are dense.
        on_gpu: whether the hidden states are on one.
        device: figures of the GPU whose waves tiles are to fill; None: the CPU, or a device that cannot be asked.
    """

    rows: int
    features: int
    classes: int
    itemsize: int
    statistics: tuple[str, ...] = ("logp",)
    hidden: bool = False
    weight: bool = False
    reference: bool = False
    groups: tuple[int, ...] | None = None
    apart: bool = True
    kept_itemsize: int = 4
    logit_bytes: int = 0
    eps: float = 0.0
    on_gpu: bool = False
    device: Device | None = None

    def work(self, plan: str) -> Work:
        """What a plan computes."""
        directions = self.directions if self.hidden else 0
        copies = 2 if self.reference else 1
        return Work(plan, self.features, self.classes, self.itemsize, copies, directions, self.weight, self.class_bytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in a tile: its logits, its inputs, and the product that becomes its gradient."""
        return self.classes * self.copies * self.class_bytes + 3 * self.features * self.itemsize

    @property
    def class_bytes(self) -> int:
        """Bytes of a logit in a tile."""
        return self.logit_bytes or self.itemsize

    @property
    def copies(self) -> int:
        """How often a tile has room for logits: for the reference's too, and for a gradient where another follows."""
        several = self.hidden and not self.weight and 1 < self.directions <= MAX_DIRECTIONS
        return 1 + int(self.reference) + int(several)

    @property
    def directions(self) -> int:
        """Products that d(statistics)/d(hidden) takes; that of `lse` follows from that of `logp`."""
        return len([name for name in self.statistics if name != "lse" or "logp" not in self.statistics])


@dataclass(frozen=True, repr=False)
class Plan:
    """What will run.

    Attributes:
        name: one of `PLANS`.
        reason: why this one.
        gemms: how many GEMMs of the whole logits' size.
        tile: rows and classes of a tile of logits.
        tiles: how many there are.
        tile_bytes: the memory of one.
        kept_bytes: what lies between forward and backward beside the inputs.
        sums_bytes: float32 sums of 16-bit gradients of the weight, while it is added up over tiles.
        backward_tile: rows and classes of a tile of the backward pass, where that makes logits anew.
        chunks: for `grouped`, the groups of each tile: tile i takes groups chunks[i] up to chunks[i + 1].
        listed: for `lists` and `columns`, after it has run: how many entries they have.
        estimate: what it should take on a named device, where that was asked for (`prefuse.explain`).
        job: what it is for.
    """

    name: str
    reason: str
    gemms: int
    tile: tuple[int, int]
    tiles: int
    tile_bytes: int
    kept_bytes: int
    job: Job
    sums_bytes: int = 0
    backward_tile: tuple[int, int] = (0, 0)
    chunks: tuple[int, ...] = ()
    listed: int | None = None
    estimate: Estimate | None = None

    def after(self, listed: int) -> Plan:
        """The plan "lists" or "columns" after it has run, with so many entries."""
        return replace(self, listed=listed, kept_bytes=listed * _entry_bytes(self.name, self.job))

    def __repr__(self) -> str:
        return "\n".join(f"{name:<11}{value}" for name, value in self._lines())

    def _repr_html_(self) -> str:
        return table(self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        job, (rows, classes) = self.job, self.tile
        lines = [
            ("plan", f"{self.name}: {self.reason}"),
            ("sizes", f"{job.rows} rows scored x {job.features} features x {job.classes} classes"),
            ("GEMMs", f"{self.gemms} x {2e-12 * job.rows * job.features * job.classes:.3g} TFLOP"),
            ("tiles", f"{self.tiles} of {rows} rows x {classes} classes, {_bytes(self.tile_bytes)}"),
        ]
        if self.backward_tile != (0, 0):
            rows, classes = self.backward_tile
            lines.append(("backward", f"tiles of {rows} rows x {classes} classes, logits made again"))
        if self.sums_bytes:
            lines.append(("sums", f"{_bytes(self.sums_bytes)} of float32 for the weight's gradient"))
        if self.name == "lists":
            lines.append(("lists", self._of_lists()))
        if self.name == "columns":
            lines.append(("columns", self._of_columns()))
        lines.append(("kept", f"{_bytes(self.kept_bytes)} from forward to backward"))
        if self.name != "keep" and self.tile[0] < job.rows:
            lines.append(("not made", f"{_bytes(job.rows * job.classes * job.class_bytes)} of logits"))
        return lines + (self.estimate.lines() if self.estimate else [])

    def _of_lists(self) -> str:
        job = self.job
        text = f"probabilities from {job.eps:.3g} on, smaller ones at random: "
        if self.listed is None:
            text += f"at most {_most_listed(job):.0f} entries a row in the mean"
        else:
            text += f"{self.listed / max(1, job.rows):.0f} entries a row"
        return f"{text}, {self._spared()}"

    def _of_columns(self) -> str:
        job = self.job
        text = f"those in which a row of a strip has a probability from {job.eps:.3g} on, and the mean of the rest"
        if self.listed is not None:
            text += f": {self.listed / max(1, job.rows * job.classes):.1%} of all"
        return f"{text}, {self._spared()}"

    def _spared(self) -> str:
        gemms = int(self.job.hidden) + int(self.job.weight)
        return f"in place of {gemms} GEMM{'s' if gemms > 1 else ''}"


def choose(job: Job, workspace_bytes: int | None = None, plan: str | None = None) -> Plan:
    """The plan for a job: the fewest GEMMs for which there is memory.

    Args:
        job: sizes and wishes.
        workspace_bytes: how much memory tiles, and logits that are kept, may take; None: `WORKSPACE_BYTES`, on a GPU
            `DEVICE_WORKSPACE_BYTES`, or a quarter of the float32 sum of the weight's gradient where that is more; twice
            as much for float32 logits of 16-bit matrices.
        plan: one of `PLANS` instead; where nothing wants a gradient it is "forward" all the same.

    Raises:
        ValueError: the named plan is unknown or cannot do the job; the message says why.
    """
    if plan is not None and plan not in PLANS:
        raise ValueError(f"plan: expected one of {', '.join(PLANS)}, or None to have it chosen, got {plan!r}")
    if workspace_bytes is None:
        summed = job.classes * job.features * 4 if job.weight and job.itemsize == 2 else 0
        on_device = job.device is not None and (job.on_gpu or not job.eps)
        workspace_bytes = default_workspace(on_device, summed) * job.class_bytes // job.itemsize
    if not (job.hidden or job.weight):
        return _plan("forward", "nothing wants a gradient", job, workspace_bytes)
    obstacles = {name: _obstacle(name, job, workspace_bytes) for name in PLANS}
    if plan is not None:
        if obstacles[plan]:
            raise ValueError(f"plan: {plan!r} is not possible here: {obstacles[plan]}")
        return _plan(plan, "asked for", job, workspace_bytes)
    for name, reason in (
        ("lists", "sparse: gradients are sums over short lists"),
        ("columns", "sparse: gradients are products of the columns in which probabilities are"),
        ("single-pass", "no gradient to the weight, so the upstream gradient can wait"),
        ("grouped", "the objective is known, and no group needs another"),
        ("keep", "the loss is not known here, and the logits fit into workspace_bytes"),
    ):
        if not obstacles[name]:
            return _plan(name, reason, job, workspace_bytes)
    better = "grouped" if job.weight and job.groups is not None else "keep" if job.weight else "single-pass"
    return _plan("recompute", f"not {better}, since {obstacles[better]}", job, workspace_bytes)


def default_workspace(on_device: bool, summed_bytes: int) -> int:
    """How much memory tiles may take where nobody says, beside a float32 sum of so many bytes."""
    return max(DEVICE_WORKSPACE_BYTES, summed_bytes // 4) if on_device else WORKSPACE_BYTES


def may_be_grouped(job: Job, plan: str | None) -> bool:
    """Whether it matters which rows make a group: where nothing wants a gradient, or one can wait, it does not."""
    if job.eps:
        return False
    waits = not job.weight and job.directions <= MAX_DIRECTIONS
    return (job.hidden or job.weight) and (plan == "grouped" or (plan is None and not waits))


def _obstacle(name: str, job: Job, workspace_bytes: int) -> str:
    """Why a job that wants a gradient cannot be done by the plan; empty where it can."""
    if name == "forward":
        return "hidden states or weight require grad, and it makes no gradient; detach them or use torch.no_grad()"
    if name in SPARSE and not job.eps:
        return "it makes sparse gradients; ask for them by sparse="
    if job.eps and name != SPARSE[job.on_gpu]:
        what = "it is for hidden states elsewhere" if name in SPARSE else "its gradients are dense"
        return f'{what}, and sparse= asks for others; leave out one of the two, or name "{SPARSE[job.on_gpu]}"'
    if name == "single-pass":
        if job.weight:
            return "the weight (or bias, or adapter) requires grad, which takes the upstream gradient of each token"
        if job.directions > MAX_DIRECTIONS:
            return (
                f"gradients through {', '.join(job.statistics)} would take {job.directions} products, "
                "and to make the logits again costs no more than two"
            )
    if name == "grouped":
        return _obstacle_to_grouped(job, workspace_bytes)
    if name == "keep":
        if len(job.statistics) > 1:
            return f"it keeps one gradient per logit, and {', '.join(job.statistics)} have one each"
        rounded = job.classes * job.itemsize if job.class_bytes > job.itemsize else 0
        needed = job.rows * (job.row_bytes + rounded)
        if needed > workspace_bytes:
            return f"the logits of {job.rows} rows take {_bytes(needed)}, and workspace_bytes is {workspace_bytes}"
    return ""


def _obstacle_to_grouped(job: Job, workspace_bytes: int) -> str:
    if job.groups is None:
        return "the loss is not known here; preference_loss knows it, with reduction 'mean' or 'sum'"
    if not job.apart:
        return "the objective couples all groups of the batch, or data_group has parts of one on several processes"
    largest = max(job.groups, default=0)
    if largest * job.row_bytes > workspace_bytes:
        return (
            f"the largest group has {largest} rows, which take {_bytes(largest * job.row_bytes)}, "
            f"and workspace_bytes is {workspace_bytes}"
        )
    return ""


def _plan(name: str, reason: str, job: Job, workspace_bytes: int) -> Plan:
    gradients = int(job.hidden) + int(job.weight)
    gemms = {
        "forward": 1,
        "single-pass": 1 + job.directions,
        "grouped": 1 + gradients,
        "keep": 1 + gradients,
        "recompute": 2 + gradients,
        "lists": 1,
        "columns": 1,
    }[name]
    if name == "lists":
        workspace_bytes = min(workspace_bytes, LISTED_ROWS * job.row_bytes)
    rows, tiles = _rows_of_tiles(name, job, workspace_bytes)
    chunks: tuple[int, ...] = ()
    if name == "grouped":
        chunks = _packed(job, workspace_bytes)
        tiles = len(chunks) - 1
        rows = max((sum(job.groups[a:b]) for a, b in itertools.pairwise(chunks)), default=0)  # type: ignore[index]
    elif name == "keep":
        rows, tiles = job.rows, 1
    backward_tile = _backward_tile(job, workspace_bytes) if name == "recompute" else (0, 0)
    return Plan(
        name=name,
        reason=reason,
        gemms=gemms,
        tile=(rows, job.classes),
        tiles=tiles,
        tile_bytes=rows * job.row_bytes,
        kept_bytes=_kept_bytes(name, job),
        sums_bytes=_sums_bytes(name, job, tiles, backward_tile),
        job=job,
        backward_tile=backward_tile,
        chunks=chunks,
    )


def _rows_of_tiles(name: str, job: Job, workspace_bytes: int) -> tuple[int, int]:
    """Rows of a tile, as even as they go, and the number of tiles."""
    room = max(1, workspace_bytes // job.row_bytes)
    if name == "columns" and LONG_STRIP < room < job.rows:
        rows = room - room % LONG_STRIP
        return rows, -(-job.rows // rows)
    if job.device is not None and name != "lists" and job.rows and room >= BLOCK_ROWS:
        return _by_waves(name, job, room)
    tiles = -(-job.rows // room)
    if tiles <= 1:
        return job.rows, min(tiles, job.rows)
    rows = min(room, _round_up(-(-job.rows // tiles), WHOLE_ROWS))
    if rows > WHOLE_ROWS:
        rows -= rows % WHOLE_ROWS
    return rows, -(-job.rows // rows)


def _by_waves(name: str, job: Job, room: int) -> tuple[int, int]:
    """Rows of a tile and the number of tiles on a GPU: whole blocks of GEMMs, even tiles, by what they should cost."""
    fewest = -(-job.rows // room)
    if fewest == 1:
        return job.rows, 1
    largest = room - room % BLOCK_ROWS
    possible = {largest - n * BLOCK_ROWS for n in range(TRIED)}
    possible |= {_round_up(-(-job.rows // tiles), BLOCK_ROWS) for tiles in range(fewest, fewest + TRIED)}
    sizes = [_sizes(job.rows, rows) for rows in possible if 0 < rows <= largest]
    even = [tiles for tiles in sizes if 2 * tiles[-1] >= tiles[0]] or sizes
    rows = _cheapest([(_seconds(name, job, tiles, 0), tiles[0]) for tiles in even])
    return rows, -(-job.rows // rows)


def _sizes(whole: int, part: int) -> list[int]:
    return [min(part, whole - begin) for begin in range(0, whole, part)]


def _seconds(name: str, job: Job, sizes: list[int], sums_bytes: int) -> float:
    """What tiles of so many rows should cost, forward and what is made at once."""
    assert job.device is not None
    return cost(job.work(name), [(rows, job.classes) for rows in sizes], [], sums_bytes, job.device).seconds


def _cheapest(tried: list[tuple[float, int]]) -> int:
    """The smallest of the sizes that cost next to the least."""
    least = min(seconds for seconds, _ in tried)
    return min(size for seconds, size in tried if seconds <= WORTH * least)


def _packed(job: Job, workspace_bytes: int) -> tuple[int, ...]:
    """Where each tile's groups begin; on a GPU tiles are filled as far as makes them cost little."""
    room, groups = workspace_bytes // job.row_bytes, job.groups or ()
    packed = _pack(groups, room)
    if job.device is None or len(packed) <= 2:
        return packed
    largest, fewest = max(groups), len(packed) - 1
    rooms = {max(largest, min(room, _round_up(-(-job.rows // n), BLOCK_ROWS))) for n in range(fewest, fewest + TRIED)}
    tried: list[tuple[float, int]] = []
    for limit in (room, *rooms):
        starts = _pack(groups, limit)
        sizes = [sum(groups[a:b]) for a, b in itertools.pairwise(starts)]
        tried.append((_seconds("grouped", job, sizes, job.classes * job.features * 4), limit))
    return _pack(groups, _cheapest(tried))


def _pack(groups: tuple[int, ...], room: int) -> tuple[int, ...]:
    """Where each tile's groups begin: as many neighbours as there is room for."""
    filled, starts = 0, [0]
    for group, rows in enumerate(groups):
        if filled and filled + rows > room:
            starts.append(group)
            filled = 0
        filled += rows
    return (*starts, len(groups))


def _backward_tile(job: Job, workspace_bytes: int) -> tuple[int, int]:
    """Rows and classes of a tile of logits that are made again.

    With a gradient to the weight, blocks of classes: what is added up over them is the small gradient, that of the
    hidden states. Without, blocks of rows, and nothing is added up.
    """
    reference = 2 if job.reference else 1
    if not job.weight:
        return _rows_of_tiles("recompute", job, workspace_bytes)[0], job.classes
    rows = max(1, job.rows)
    per_class = rows * job.class_bytes * reference
    room = max(0, workspace_bytes - 3 * rows * job.features * job.itemsize)
    if room // per_class >= min(NARROWEST_BLOCK, job.classes):
        blocks = -(-job.classes // (room // per_class))
        return rows, min(job.classes, _round_up(-(-job.classes // blocks), WHOLE_ROWS))
    classes = min(NARROWEST_BLOCK, job.classes)
    per_row = classes * job.class_bytes * reference + 3 * job.features * job.itemsize
    return max(1, workspace_bytes // per_row), classes


def _kept_bytes(name: str, job: Job) -> int:
    hidden = job.rows * job.features * job.kept_itemsize
    weight = job.classes * job.features * job.itemsize
    return {
        "forward": 0,
        "single-pass": job.directions * hidden,
        "grouped": (hidden if job.hidden else 0) + (weight if job.weight else 0),
        "keep": job.rows * job.classes * job.itemsize,
        "recompute": 0,
        "lists": round(job.rows * _most_listed(job) * _entry_bytes(name, job)),
        "columns": job.rows * job.classes * job.itemsize,
    }[name]


def listed_logs(statistics: Sequence[str]) -> int:
    """How many logarithms of probabilities stand beside each entry of a list, for gradients through `statistics`."""
    return 2 if "kl" in statistics else int("entropy" in statistics)


def _entry_bytes(name: str, job: Job) -> int:
    """Of a class, a value and its logarithms in lists, of a probability in columns."""
    return 8 + max(4, job.itemsize) * (1 + listed_logs(job.statistics)) if name == "lists" else job.itemsize


def _most_listed(job: Job) -> float:
    """The largest mean of the entries of a row, and of its reference's where these are listed too."""
    return min(job.classes, 1 / job.eps) * (2 if "rkl" in job.statistics else 1) if job.eps else 0.0


def _sums_bytes(name: str, job: Job, tiles: int, backward_tile: Tile) -> int:
    """Of the classes whose gradients are under way: all of them, or those of a block."""
    classes = {"grouped": job.classes if tiles > 1 else 0, "recompute": backward_tile[1]}.get(name, 0)
    many = name == "grouped" or backward_tile[0] < job.rows
    return classes * job.features * 4 if job.weight and job.itemsize == 2 and many else 0


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
