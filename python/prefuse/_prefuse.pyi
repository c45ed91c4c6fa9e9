"""The native half of prefuse. Private: call it through the package's Python functions.

What is read or written comes as a tensor of PyTorch or as an unused DLPack capsule, which keep the memory alive: of
f16, bf16, f32, f64, i64 or bool, on the device that the function works on. Plans also take a shape, of what need not
exist: (dtype, shape, strides in elements). A capsule is only looked at, and may be given to several calls.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, final

from torch import Tensor

# fmt: off
__all__ = [
    "PARALLEL", "Graph", "Lists", "Program", "Short", "__version__", "cuda_cache_directory", "cuda_columns_add",
    "cuda_columns_find", "cuda_columns_gather", "cuda_columns_parts", "cuda_columns_to_input",
    "cuda_columns_to_weight", "cuda_compile", "cuda_devices",
    "cuda_distance_backward", "cuda_distance_forward", "cuda_distance_workspace", "cuda_driver_version", "cuda_nvrtc",
    "cuda_plan_columns_add", "cuda_plan_columns_find", "cuda_plan_columns_gather", "cuda_plan_columns_to_input",
    "cuda_plan_columns_to_weight", "cuda_plan_distance_backward",
    "cuda_plan_distance_forward", "cuda_plan_rows_backward", "cuda_plan_rows_both", "cuda_plan_rows_forward",
    "cuda_plan_segment_expand", "cuda_plan_segment_sum", "cuda_rows_backward", "cuda_rows_both", "cuda_rows_forward",
    "cuda_rows_workspace", "cuda_search_nvrtc", "cuda_segment_expand", "cuda_segment_sum", "curate_ends",
    "curate_first_beaten", "curate_pairs", "curate_rank", "distance_backward", "distance_forward", "is_one",
    "kept_storage", "lists_by_class", "lists_by_row", "prefer_huge_pages", "projected_lists", "projects_rows",
    "release_storage", "rows_backward", "rows_both", "rows_forward", "rows_lists", "rows_projected", "segment_expand",
    "segment_sum", "simd_level", "statistic_names", "storage_idle", "versions_of"
]
# fmt: on
__version__: str

PARALLEL: int
"""From this many items on, an objective is scored by more than one thread."""

_Memory: TypeAlias = Any
_Shape: TypeAlias = tuple[str, tuple[int, ...], tuple[int, ...]]
_Described: TypeAlias = _Memory | _Shape

_Rows: TypeAlias = tuple[Any, ...]
"""A call's rows: logits, labels, mask, reference, temperature, scale, softcap, ignore_index, first_class, classes."""

def statistic_names() -> list[str]:
    """The names of the statistics, by their bits."""

def rows_forward(
    rows: _Rows,
    stats: int,
    k: int,
    out: _Memory,
    threads: int,
) -> None:
    """Writes the statistics of every row, those of lower bits of `stats` first, into `out` [S, *lead]."""

def projects_rows() -> bool:
    """Whether `rows_projected` runs on this machine."""

def rows_projected(
    rows: _Rows,
    stats: int,
    product: tuple[_Memory, _Memory, _Memory | None],
    out: _Memory,
    threads: int,
) -> None:
    """As `rows_forward`, of rows whose logits, a shape, are the `product`: hidden states, weight, bias."""

def rows_backward(
    rows: _Rows,
    stats: int,
    grads: _Memory,
    saved: _Memory,
    gradient: _Memory,
    threads: int,
) -> None:
    """Writes the derivative of `sum(grads * statistics)` with respect to the logits into `gradient`."""

def rows_both(
    rows: _Rows,
    stats: int,
    k: int,
    grads: _Memory,
    out: _Memory,
    gradient: _Memory,
    threads: int,
) -> None:
    """`rows_forward` into `out`, then `rows_backward` with these values into `gradient`, in one visit to the logits."""

@final
class Lists:
    """What `rows_lists` has found, until it is written into tensors of its length, that of all lists together."""

    def __len__(self) -> int: ...
    def write(self, lengths: _Memory, classes: _Memory, values: _Memory) -> None:
        """Writes the length of each row's list (i64), the listed classes (i64) and their values (floats)."""

def rows_lists(
    rows: _Rows,
    stats: int,
    k: int,
    lent: tuple[_Memory, _Memory, _Memory],
    fresh: bool,
    sampling: tuple[float, int, int],
    threads: int,
) -> Lists:
    """Lists the probabilities of every row, and writes what belongs to its label into `at_label` [2, rows].

    `lent` are `table`, `numbers` and `at_label`. With `fresh` the statistics come first, into `table` [S, rows], which
    has them otherwise. `numbers` are those of the rows for the hash, `sampling` is eps, seed and step.
    """

def projected_lists(
    rows: _Rows,
    stats: int,
    product: tuple[_Memory, _Memory, _Memory | None],
    lent: tuple[_Memory, _Memory, _Memory],
    sampling: tuple[float, int, int],
    threads: int,
) -> Lists:
    """`rows_lists` of rows whose logits, a shape, are those of `rows_projected`; their statistics go into `table`."""

_Matrix: TypeAlias = tuple[Any, ...]
"""A matrix as lists: offsets, classes, values, rest, at_label, labels, number of columns."""

def lists_by_row(matrix: _Matrix, weight: _Memory, out: _Memory, threads: int) -> None:
    """Writes the product of a matrix of lists [M, V] and `weight` [V, H] into `out` [M, H]."""

def lists_by_class(
    matrix: _Matrix,
    inputs: _Memory,
    base: _Memory | None,
    out: _Memory,
    sums: _Memory | None,
    threads: int,
) -> None:
    """Writes the product of its transpose and `inputs` [M, H] into `out` [V, H], the sums of columns into `sums`.

    Every row of `out` has `base` [H], of the dtype of the sums (float32 or float64), besides.
    """

def prefer_huge_pages(array: _Memory) -> None:
    """Asks the system to back an array that nobody has written to yet by huge pages: advice about speed."""

def kept_storage(dtype: str, shape: Sequence[int], limit: int) -> Any:
    """A new array on the CPU, to consume; its memory is kept afterwards, up to `limit` bytes. None: there is none."""

def release_storage() -> int:
    """Gives the kept memory that no array uses back to the system: how many bytes it was."""

def storage_idle() -> int:
    """How many bytes are kept that no array uses."""

def simd_level() -> str:
    """The instruction set in use: "amx", "avx512bf16", "avx512", "avx2", "neon" or "portable"."""

def segment_sum(values: _Memory, offsets: _Memory, out: _Memory) -> None:
    """Writes the sum of each segment `values[offsets[k]:offsets[k+1]]` into `out[k]`, accumulated in float64.

    `values` and `out` are f32 or f64 vectors, `offsets` is an i64 vector that starts at 0 and never decreases.
    """

def segment_expand(values: _Memory, offsets: _Memory, out: _Memory) -> None:
    """Writes `values[k]` to all of `out[offsets[k]:offsets[k+1]]`: the transpose of `segment_sum`."""

def distance_forward(first: _Memory, second: _Memory, out: _Memory, threads: int) -> None:
    """Writes the sum of `(first[b] - second[b]) ** 2` into `out[b]`; the matrices [B, D] have dense rows.

    `out` is f64 where they are, f32 otherwise; f64 goes with f64 only.
    """

def distance_backward(first: _Memory, second: _Memory, grads: _Memory, gradient: _Memory, threads: int) -> None:
    """Writes `2 * grads[b] * (first[b] - second[b])` into `gradient[b]`, contiguous and of the dtype of `first`."""

def curate_rank(scores: _Memory, groups: _Memory, offsets: _Memory, order: _Memory, threads: int) -> None:
    """Writes the indices of all elements by group, then by descending score, then by index, into `order`.

    `scores` are f64 without NaN, `groups` i64 from 0 to below len(offsets) - 1; group k is
    `order[offsets[k]:offsets[k+1]]`.
    """

def curate_first_beaten(scores: _Memory, order: _Memory, offsets: _Memory, min_gap: float, first: _Memory) -> int:
    """Writes where the elements begin that each place of a ranking beats into `first`; the number of such pairs.

    An element beats those of its group whose score is lower, by at least `min_gap`; they reach to the group's end.
    """

def curate_pairs(
    order: _Memory, offsets: _Memory, first: _Memory, chosen: _Memory, rejected: _Memory, threads: int
) -> None:
    """Writes the two elements of each pair that `curate_first_beaten` counted."""

def curate_ends(scores: _Memory, groups: _Memory, best: _Memory, worst: _Memory) -> None:
    """Writes the first of the best and the last of the worst elements of each group; -1 for an empty one."""

@final
class Graph:
    """The expressions of one objective over a tree of index spaces.

    Nodes are integers; equal expressions are the same node. A value of a coarser space is broadcast to a finer one
    where they meet; spaces of which neither contains the other cannot meet. Every mistake is a ValueError.
    """

    def __new__(cls, name: str, spaces: dict[str, str]) -> Graph:
        """`spaces` maps each space to its parent; the root "batch" is implied.

        Every space `S` also has a pair space `S*S`: all ordered pairs of its elements inside one parent element.
        """

    def __len__(self) -> int: ...
    @property
    def name(self) -> str: ...
    def constant(self, value: float) -> int:
        """A number (space "batch")."""

    def parameter(self, name: str) -> int:
        """A number given at run time (space "batch")."""

    def column(self, name: str, space: str) -> int:
        """An array given at run time, one value per element of `space`."""

    def position(self, space: str) -> int:
        """The 0-based index of each element inside its parent."""

    def count(self, space: str, to: str) -> int:
        """The number of elements of `space` below each element of `to`."""

    def unary(self, op: str, x: int) -> int:
        """neg exp log log1p expm1 log1mexp sigmoid log_sigmoid softplus tanh relu abs sign square sqrt reciprocal not.

        `log1mexp` is log(1 - exp(x)) for x <= 0; `not` is 1 where x is 0, else 0.
        """

    def binary(self, op: str, a: int, b: int) -> int:
        """add sub mul div pow minimum maximum clamp_min clamp_max lt le gt ge eq ne and or scale_or_zero.

        Comparisons and logic give 0 or 1. At a tie, `minimum` and `maximum` send half of the gradient to each
        argument, `clamp_min` and `clamp_max` all of it to the first.
        """

    def where(self, condition: int, a: int, b: int) -> int:
        """`a` where the condition is not 0, else `b`; no gradient reaches the branch that is not taken."""

    def broadcast(self, x: int, to: str) -> int:
        """`x` at a space below its own."""

    def reduce(self, op: str, x: int, to: str) -> int:
        """sum mean max min logsumexp over the elements below each element of `to`.

        Of no elements: sum and mean 0, max and logsumexp -inf, min inf. Ties share the gradient of max and min.
        """

    def project(self, x: int, side: str) -> int:
        """For each pair of `S*S`, the value of its "i" (first) or "j" (second) element."""

    def collapse(self, x: int, side: str) -> int:
        """For each element of `S`, the sum over the pairs in which it is the "i" (or "j") element."""

    def rank(self, x: int, within: str, descending: bool) -> int:
        """1-based rank inside each element of `within`: stable, NaN last, without gradient."""

    def sort(self, x: int, key: int, within: str, descending: bool) -> int:
        """`x` permuted by the stable order of `key` (NaN last) inside each element of `within`."""

    def scan(self, x: int, reverse: bool, discount: int, reset: int | None = None) -> int:
        """The inclusive sum `y[t] = x[t] + discount * y[t-1]` inside each parent element (`y[t+1]` if `reverse`).

        Nothing is carried between positions t-1 and t where `reset[t]` is not 0. `discount` lives at "batch".
        """

    def shift(self, x: int, by: int, fill: float) -> int:
        """`y[t] = x[t - by]` inside each parent element, `fill` where that lies outside of it."""

    def first(self, x: int) -> int:
        """The first element of each parent element; 0 if it has none."""

    def last(self, x: int) -> int:
        """The last element of each parent element; 0 if it has none."""

    def stop_gradient(self, x: int) -> int:
        """`x`, through which no gradient passes."""

    def space(self, x: int) -> str:
        """The space at which a node lives."""

    def is_constant(self, x: int) -> float | None:
        """The number that a node is known to be, if it is."""

    def text(self, x: int, names: dict[int, str] | None = None) -> str:
        """A node as plain text; `names` gives texts for some nodes, most often columns and parameters."""

    def latex(self, x: int, names: dict[int, str] | None = None) -> str:
        """A node as LaTeX without delimiters; `names` gives the LaTeX of some nodes."""

    def gradient(self, loss: int, upstream: int, wrt: Sequence[int]) -> list[int]:
        """The derivative of `sum(upstream * loss)` with respect to each node of `wrt`, at that node's space.

        `upstream` lives at the space of `loss` or above it (a column, or the constant 1).
        """

    def compile(self, outputs: Sequence[int]) -> Program:
        """A program that computes the outputs."""

    def crosses_batch(self, outputs: Sequence[int], columns: Sequence[int]) -> bool:
        """Whether what the outputs are for one group depends on what the column nodes are for another."""

    def columns_of(self, outputs: Sequence[int]) -> list[int]:
        """The column and parameter nodes that the outputs depend on, in order of creation."""

_Differentiated: TypeAlias = tuple[tuple[str, ...], tuple[Tensor, ...], tuple[Tensor, ...], tuple[int | None, ...]]
"""The names of columns, the columns, the gradients that they get, and the versions of all arguments."""

@final
class Short:
    """How an objective with one value per item scores small batches."""

    def __new__(
        cls,
        columns: tuple[str, ...],
        item: int,
        reduced: bool,
        extras: tuple[int, int],
        prototypes: tuple[Tensor, ...],
        compile: Callable[[tuple[str, ...]], Program],
    ) -> Short:
        """`columns[item]` has one value per item. `compile` makes the program for columns whose gradients are wanted.

        It puts out the loss, the extras, so many for each item and for the batch, and the gradients if it is `reduced`;
        the results are made of `prototypes`, one of f32 and one of f64.
        """

    def score(
        self, arguments: Mapping[str, Any], numbers: Mapping[str, float], gradients: bool, any: bool
    ) -> tuple[Tensor, int, Tensor, _Differentiated | None] | None:
        """Loss, number of items, extras, what is differentiated; None for what needs a closer look.

        With `gradients` these are the columns that require grad; with `any` all columns where none does.
        """

def is_one(tensor: Tensor) -> bool:
    """Whether it is the number 1, in memory of the CPU."""

def versions_of(tensors: dict[str, Tensor]) -> tuple[int | None, ...]:
    """How often tensors have been changed in place; None for those made for inference, which do not count it."""

@final
class Program:
    """A compiled set of outputs: a flat list of instructions, run in float64. Runs may overlap."""

    @property
    def columns(self) -> list[str]:
        """The names of the columns that `run` wants, in order."""

    @property
    def column_spaces(self) -> list[str]:
        """The space of each column."""

    @property
    def parameters(self) -> list[str]:
        """The names of the parameters that `run` wants, in order."""

    @property
    def spaces(self) -> list[str]:
        """The spaces whose segments `run` wants, in order, parents first."""

    @property
    def output_spaces(self) -> list[str]:
        """The space of each output."""

    @property
    def instructions(self) -> list[str]:
        """One line per instruction."""

    def run(
        self,
        columns: list[_Memory],
        parameters: Sequence[float],
        offsets: list[_Memory | int],
        outputs: list[_Memory],
        threads: int,
    ) -> None:
        """Computes the outputs and writes them, after every column has been read.

        Columns: any dtype and stride, one dimension (at "batch": none, or one of
        length 1). Outputs: likewise, f32 or f64, filled in order: one array may hold several outputs one behind the
        other. `offsets[k]` says how `spaces[k]` is cut by its parent: an i64 array of offsets, one more than the parent
        has elements; or a number of elements, if the parent is "batch" or has as many (one each).
        Raises ValueError naming the column, output or space that does not fit.
        """

    def cuda_sources(
        self, columns: Sequence[tuple[str, bool]], outputs: Sequence[tuple[str, bool]], one_block: bool
    ) -> list[tuple[str, str]]:
        """The CUDA C++ text, which includes `objective.cuh` of `kernels/`: (entry point, text) of each kernel.

        Columns and outputs are given as (dtype, whether their elements are taken by index). `one_block`: one kernel
        that is one launch, else the kernels of a chain of launches.
        """

    def cuda_compile(
        self,
        columns: Sequence[tuple[str, bool]],
        outputs: Sequence[tuple[str, bool]],
        one_block: bool,
        architecture: int,
        cached: bool,
    ) -> list[tuple[str, bytes, str]]:
        """(entry point, machine code, compiler's log) of the same for sm_`architecture`; from the cache: no log."""

    def cuda_workspace(self, offsets: Sequence[_Described | int], counts: Mapping[str, int]) -> int:
        """Bytes of workspace that `cuda_launch` needs."""

    def cuda_launch(
        self,
        columns: Sequence[_Memory | tuple[_Memory, _Memory]],
        parameters: Sequence[float],
        offsets: Sequence[_Memory | int],
        counts: Mapping[str, int],
        outputs: Sequence[_Memory | tuple[_Memory, _Memory]],
        workspace: _Memory,
        device: int,
        stream: int,
    ) -> None:
        """Queues what `run` does on a stream of a device, whose memory the capsules describe. Does not wait.

        Two arrays: the elements of the first are taken (or written) at the indices in the second, a contiguous i64
        vector. `offsets[k]` may also be a number of elements that is a multiple of the parent's: equally many each.
        `counts` has, for each space that is cut by offsets and for each pair space below one, an upper bound of the
        number of elements: the length that its columns must have; only the device looks at offsets. Outputs
        overlap neither columns nor each other. Up to some thousands of elements it is one launch.
        Raises ValueError naming what does not fit; RuntimeError where CUDA is missing or fails.
        """

    def cuda_plan(
        self,
        columns: Sequence[_Described | tuple[_Described, _Described]],
        parameters: Sequence[float],
        offsets: Sequence[_Described | int],
        counts: Mapping[str, int],
        outputs: Sequence[_Described | tuple[_Described, _Described]],
        workspace: _Described | None,
        one_block: bool | None = None,
    ) -> list[dict[str, Any]]:
        """The launches of the same call as data (as the other `cuda_plan_*`); `one_block` forces either way."""

# CUDA. Capsules are of device memory; `stream` is the raw handle; work is queued, nothing waits for it.

_Launch: TypeAlias = dict[str, Any]
"""One kernel launch as queued: kernel, sources (its own last, behind the headers), definitions, grid, block, cluster,
shared bytes, argument."""

def cuda_rows_workspace(logits: _Described, reference: _Described | None, stats: int, device: int) -> int:
    """Bytes of scratch memory that `cuda_rows_forward` needs."""

def cuda_rows_forward(
    rows: _Rows,
    stats: int,
    k: int,
    out: _Memory,
    workspace: _Memory,
    device: int,
    stream: int,
) -> None:
    """Queues a forward call; `workspace` is the scratch memory."""

def cuda_rows_backward(
    rows: _Rows,
    stats: int,
    grads: _Memory,
    saved: _Memory,
    gradient: _Memory,
    device: int,
    stream: int,
) -> None:
    """Queues a backward call."""

def cuda_rows_both(
    rows: _Rows,
    stats: int,
    k: int,
    grads: _Memory,
    out: _Memory,
    gradient: _Memory,
    workspace: _Memory,
    device: int,
    stream: int,
) -> None:
    """Queues a forward and a backward call in one; `workspace` as for `cuda_rows_forward`."""

def cuda_segment_sum(values: _Memory, offsets: _Memory, out: _Memory, device: int, stream: int) -> None:
    """Queues a segment sum."""

def cuda_segment_expand(values: _Memory, offsets: _Memory, out: _Memory, device: int, stream: int) -> None:
    """Queues a segment expansion."""

_Strips: TypeAlias = tuple[_Described, _Described, _Described, _Described, int]
"""Rows of logits [N, V] in strips: logits, factors, lse, labels, rows of a strip."""

_ToInput: TypeAlias = tuple[Any, ...]
"""Values, columns, strips, weight, factors, tails, means, what is written; the most rows of a strip."""

_ToWeight: TypeAlias = tuple[_Described, _Described, _Described, _Described]
"""A sum, values, columns, inputs."""

def cuda_columns_find(
    strips: _Strips, eps: float, found: tuple[_Described, _Described], device: int, stream: int
) -> None:
    """Queues the search for columns with a probability of at least `eps`; writes flags, and tails of the others."""

def cuda_columns_parts(longest: int) -> int:
    """Parts of a strip's columns that have sums of their own, where the longest list is so long."""

def cuda_columns_gather(strips: _Strips, gathered: tuple[_Described, ...], device: int, stream: int) -> None:
    """Queues the gathering of probabilities; `gathered` are columns and starts, which it reads, values and sums."""

def cuda_columns_add(added: tuple[_Described, _Described, _Described], device: int, stream: int) -> None:
    """Queues the addition of rows to rows of a sum; `added` are the sum, what is added, and to which rows."""

def cuda_columns_to_input(call: _ToInput, device: int, stream: int) -> None:
    """Queues what gathered columns and the means of the rest give the inputs."""

def cuda_columns_to_weight(call: _ToWeight, device: int, stream: int) -> None:
    """Queues the addition of what a strip's columns give the weight to the sum of its gradient."""

def cuda_plan_columns_find(strips: _Strips, eps: float, found: tuple[_Described, _Described]) -> list[_Launch]:
    """The launches of `cuda_columns_find`."""

def cuda_plan_columns_gather(strips: _Strips, gathered: tuple[_Described, ...]) -> list[_Launch]:
    """The launches of `cuda_columns_gather`."""

def cuda_plan_columns_add(added: tuple[_Described, _Described, _Described]) -> list[_Launch]:
    """The launches of `cuda_columns_add`."""

def cuda_plan_columns_to_input(call: _ToInput) -> list[_Launch]:
    """The launches of `cuda_columns_to_input`."""

def cuda_plan_columns_to_weight(call: _ToWeight) -> list[_Launch]:
    """The launches of `cuda_columns_to_weight`."""

def cuda_distance_workspace(first: _Described, second: _Described) -> int:
    """float64 numbers of workspace that `cuda_distance_forward` needs."""

def cuda_distance_forward(
    first: _Memory, second: _Memory, out: _Memory, workspace: _Memory, device: int, stream: int
) -> None:
    """Queues `distance_forward` on a stream of a device; `workspace` is that many numbers."""

def cuda_distance_backward(
    first: _Memory, second: _Memory, grads: _Memory, gradient: _Memory, device: int, stream: int
) -> None:
    """Queues `distance_backward` on a stream of a device."""

def cuda_search_nvrtc(candidates: list[str]) -> None:
    """Says where to look for NVRTC: paths or names, the preferred first."""

def cuda_nvrtc() -> tuple[str, str, list[int]]:
    """(path, version, compute capabilities) of the NVRTC in use; a RuntimeError where there is none."""

def cuda_driver_version() -> int:
    """The driver's CUDA version, 13020 for 13.2; a RuntimeError where there is no driver."""

def cuda_devices() -> list[tuple[str, int, int]]:
    """(name, compute capability as 90 for 9.0, multiprocessors) of every device."""

def cuda_cache_directory() -> str:
    """The directory of compiled kernels; a RuntimeError that says why none is used."""

def cuda_compile(kernel: str, defines: list[tuple[str, str]], architecture: int, cached: bool) -> tuple[bytes, str]:
    """(machine code, compiler log) of a kernel for sm_`architecture`; with `cached`, from the cache, the log empty."""

def cuda_plan_rows_forward(
    rows: _Rows,
    stats: int,
    k: int,
    out: _Described,
    workspace: _Described | None,
    multiprocessors: int,
) -> tuple[int, list[_Launch]]:
    """(bytes of scratch memory, launches) of a forward call."""

def cuda_plan_rows_backward(
    rows: _Rows,
    stats: int,
    grads: _Described,
    saved: _Described,
    gradient: _Described,
) -> list[_Launch]:
    """The launches of a backward call."""

def cuda_plan_rows_both(
    rows: _Rows,
    stats: int,
    k: int,
    grads: _Described,
    out: _Described,
    gradient: _Described,
    workspace: _Described | None,
    target: tuple[int, int, int],
) -> list[_Launch]:
    """The launches of a call for both on a device of (multiprocessors, compute capability, shared bytes per block)."""

def cuda_plan_segment_sum(values: _Described, offsets: _Described, out: _Described) -> list[_Launch]:
    """The launches of a segment sum."""

def cuda_plan_segment_expand(values: _Described, offsets: _Described, out: _Described) -> list[_Launch]:
    """The launches of a segment expansion."""

def cuda_plan_distance_forward(
    first: _Described, second: _Described, out: _Described, workspace: _Described | None
) -> list[_Launch]:
    """The launches of `cuda_distance_forward`."""

def cuda_plan_distance_backward(
    first: _Described, second: _Described, grads: _Described, gradient: _Described
) -> list[_Launch]:
    """The launches of `cuda_distance_backward`."""
