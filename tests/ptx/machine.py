"""Runs PTX on the CPU: all threads of a block or cluster in lockstep, those at the lowest instruction first.

Registers and shared memory begin as rubbish. Reported are accesses that are misaligned or outside of every buffer,
barriers and collectives that some threads never reach, and races in shared memory: two accesses to a byte, one of them
a write, by threads between which no barrier lies. Of the readers of a byte the last is remembered.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence

import numpy as np

from tests.ptx.program import Instruction, Program

Values = np.ndarray
_TYPES: dict[str, type] = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_WINDOWS = {"local": 1 << 61, "shared": 1 << 60}
"""Where generic addresses of each memory begin; everything below is global."""
_SPACES = ("global", "param", "local", "shared", "shared::cluster")
_RANK_SHIFT = 24
"""How a rank stands in an address of shared::cluster."""


class MachineError(AssertionError):
    """The program did what it must not."""


class Shared:
    """Shared memory of the blocks of a cluster, with who touched each byte last."""

    def __init__(self, blocks: int, size: int) -> None:
        self.bytes = np.full((blocks, size), 0xCD, np.uint8)
        self.stamps = {kind: np.full((blocks, size, 4), -1, np.int64) for kind in ("write", "read")}

    def check(self, kind: str, block: Values, places: Values, now: Values, blocks: Values, warps: Values) -> None:
        """Raises where an access of `kind` follows an earlier one that no barrier separates from it.

        `now` [threads, 5]: the thread, and how many barriers of its block, arrivals at its cluster's, meetings of its
        warp and waits at its cluster's it has behind it. All but the last are kept as the stamp of an access.
        """
        for earlier in ("write",) if kind == "read" else ("write", "read"):
            stamp = self.stamps[earlier][block, places]
            who = stamp[..., 0]
            same = who == now[:, :1]
            there = np.clip(who, 0, None)
            by_block = (blocks[there] == blocks[now[:, 0]][:, None]) & (now[:, 1:2] > stamp[..., 1])
            by_cluster = now[:, 4:5] > stamp[..., 2]
            by_warp = (warps[there] == warps[now[:, 0]][:, None]) & (now[:, 3:4] > stamp[..., 3])
            if not ((who < 0) | same | by_block | by_cluster | by_warp).all():
                raise MachineError(f"race in shared memory: a {kind} follows a {earlier} of another thread")
        self.stamps[kind][block, places] = now[:, None, :4]


class Machine:
    """One launch of a program. `memory`: (begin, end, writable) of all that may be touched."""

    def __init__(
        self,
        program: Program,
        argument: bytes,
        shape: tuple[int, int, int, int],
        memory: Sequence[tuple[int, int, bool]],
    ) -> None:
        self.program = program
        self.grid, self.block, self.cluster, self.dynamic = shape
        self.argument = np.frombuffer(argument, np.uint8)
        self.memory = [(begin, _bytes_at(begin, end), writable) for begin, end, writable in memory]

    def run(self) -> None:
        """Runs all clusters of the grid, one after the other."""
        for first in range(0, self.grid, self.cluster):
            self._start(first)
            while self.alive.any():
                self._step()

    def _start(self, first: int) -> None:
        count = self.block * self.cluster
        self.thread = np.arange(count)
        self.blocks, self.warps = self.thread // self.block, self.thread // 32
        self.special = {
            "%tid.x": (self.thread % self.block).astype(np.uint32),
            "%ctaid.x": (first + self.blocks).astype(np.uint32),
            "%nctaid.x": np.full(count, self.grid, np.uint32),
            "%ntid.x": np.full(count, self.block, np.uint32),
        }
        self.registers: dict[str, Values] = {}
        self.locals: dict[str, Values] = {}
        self.shared = Shared(self.cluster, self.program.dynamic + self.dynamic)
        self.pc = np.full(count, self.program.entry.begin)
        self.alive, self.waiting = np.ones(count, bool), np.zeros(count, bool)
        self.passed, self.arrived, self.waited, self.met = (np.zeros(count, np.int64) for _ in range(4))
        self.returns: list[list[int]] = [[] for _ in range(count)]

    def _step(self) -> None:
        ready = self.alive & ~self.waiting
        if not ready.any():
            return self._release()
        at = int(self.pc[ready].min())
        lanes = np.flatnonzero(ready & (self.pc == at))
        instruction = self.program.instructions[at]
        taken = lanes
        if instruction.guard:
            value = self._register(instruction.guard.lstrip("!"))[lanes]
            taken = lanes[~value if instruction.guard[0] == "!" else value]
        self.pc[lanes] += 1
        if len(taken) == 0:
            return None
        name = instruction.op[0]
        if name in ("bar", "barrier", *_COLLECTIVES) and "arrive" not in instruction.op:
            self.waiting[taken] = True
            self.pc[taken] = at
        elif name == "barrier":
            self.arrived[taken] += 1
        elif name in _CONTROL:
            _CONTROL[name](self, instruction, taken)
        else:
            try:
                self._execute(instruction, taken)
            except MachineError as error:
                raise MachineError(f"{error}, at {instruction.text}") from None
        return None

    def _release(self) -> None:
        """Lets threads go on that have all come to where they meet."""
        moved = False
        for at in np.unique(self.pc[self.alive]):
            here, instruction = self.alive & (self.pc == at), self.program.instructions[at]
            if instruction.op[:2] == ("barrier", "cluster"):
                groups = [here] if (self.arrived[self.alive] > self.waited[here].max()).all() else []
                self.waited[here] += len(groups)
            elif instruction.op[0] in _COLLECTIVES or "warp" in instruction.op:
                groups = [here & (self.warps == warp) for warp in np.unique(self.warps[here])]
                groups = [group for group in groups if group.sum() == 32]
                for group in groups:
                    self.met[group] += 1
                    if instruction.op[0] != "bar":
                        _COLLECTIVES[instruction.op[0]](self, instruction, np.flatnonzero(group))
            else:
                groups = [here & (self.blocks == block) for block in np.unique(self.blocks[here])]
                groups = [group for group in groups if group.sum() == self.block]
                for group in groups:
                    self.passed[group] += 1
            for group in groups:
                self.waiting[group] = False
                self.pc[group] += 1
                moved = True
        if not moved:
            where = {self.program.instructions[at].text for at in np.unique(self.pc[self.alive])}
            raise MachineError(f"threads wait for ever: {where}, {self.alive.sum()} of {len(self.alive)} alive")

    def _vote(self, instruction: Instruction, lanes: Values) -> None:
        arguments = instruction.arguments
        value = self._get(arguments[1].lstrip("!"), "pred", lanes)
        value = ~value if arguments[1][0] == "!" else value
        bits = np.sum(value << np.arange(32, dtype=np.uint64))
        self._put(arguments[0], np.full(32, bits, np.uint64).astype(np.uint32), lanes)

    def _shuffle(self, instruction: Instruction, lanes: Values) -> None:
        arguments = instruction.arguments
        value, step = self._get(arguments[1], "b32", lanes), self._get(arguments[2], "u32", lanes).astype(np.int64)
        lane = np.arange(32)
        source = {"bfly": lane ^ step, "up": lane - step, "down": lane + step, "idx": step & 31}[instruction.op[2]]
        inside = (source >= 0) & (source < 32)
        targets = arguments[0].split("|")
        self._put(targets[0], np.where(inside, value[np.clip(source, 0, 31)], value), lanes)
        for target in targets[1:]:
            self._put(target, inside, lanes)

    def _load_matrices(self, instruction: Instruction, lanes: Values) -> None:
        """Four of 8 x 8 numbers of 16 bits: lane l has the place of row l % 8 of matrix l // 8."""
        base, address = self._address(instruction.arguments[1], lanes)
        if (address % 16).any():
            raise MachineError("misaligned access of 16 bytes")
        rows = self._bytes("shared", base, address, 16, lanes, None)
        matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(4, 8, 8)
        if "trans" in instruction.op:
            matrices = np.ascontiguousarray(matrices.swapaxes(1, 2))
        for name, words in zip(_names(instruction.arguments[0]), matrices.view(np.uint32), strict=True):
            self._put(name, np.ascontiguousarray(words.reshape(32)), lanes)

    def _multiply_matrices(self, instruction: Instruction, lanes: Values) -> None:
        """[16, 16] by [16, 8], added to [16, 8]; where each lane has what, NVIDIA's PTX manual says in pictures."""
        op = instruction.op
        if op[3:6] != ("m16n8k16", "row", "col") or op[6] != "f32" or op[9] != "f32":
            raise NotImplementedError(instruction.text)
        wide = _from_bf16 if op[7] == "bf16" else lambda halves: halves.view(np.float16).astype(np.float32)

        def eighths(argument: str) -> list[Values]:
            """Each register's pairs as 8 x 8 numbers: lane l has two next to each other of row l // 4."""
            words = [np.ascontiguousarray(self._get(name, "b32", lanes)) for name in _names(argument)]
            return [wide(word.view(np.uint16)).reshape(8, 8) for word in words]

        left, right = eighths(instruction.arguments[1]), eighths(instruction.arguments[2])
        a = np.block([[left[0], left[2]], [left[1], left[3]]])
        b = np.block([right[0], right[1]])  # transposed: a lane has two of a column
        sums = [self._get(name, "f32", lanes) for name in _names(instruction.arguments[3])]
        with np.errstate(all="ignore"):
            product = (a.astype(np.float64) @ b.T.astype(np.float64)).astype(np.float32).reshape(2, 32, 2)
            for name, before, (half, place) in zip(
                _names(instruction.arguments[0]), sums, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True
            ):
                self._put(name, before + product[half, :, place], lanes)

    # Control

    def _branch(self, instruction: Instruction, lanes: Values) -> None:
        self.pc[lanes] = self.program.labels[instruction.arguments[0]]

    def _call(self, instruction: Instruction, lanes: Values) -> None:
        name = next(argument for argument in instruction.arguments if argument in self.program.functions)
        function = self.program.functions[name]
        given = [re.findall(r"[\w$]+", a) for a in instruction.arguments if a.startswith("(")]
        passed = given[-1] if function.parameters else []
        for own, outer in zip(function.parameters, passed, strict=True):
            self._local(own)[lanes] = self._local(outer)[lanes]
        for lane in lanes:
            self.returns[lane].append(int(self.pc[lane]))
        self.pc[lanes] = function.begin

    def _return(self, _: Instruction, lanes: Values) -> None:
        for lane in lanes:
            if not self.returns[lane]:
                self.alive[lane] = False
                continue
            self.pc[lane] = self.returns[lane].pop()
            call = self.program.instructions[self.pc[lane] - 1]
            name = next(argument for argument in call.arguments if argument in self.program.functions)
            outer = re.findall(r"[\w$]+", call.arguments[0]) if call.arguments[0].startswith("(") else []
            for own, result in zip(self.program.functions[name].results, outer, strict=False):
                self._local(result)[lane] = self._local(own)[lane]

    def _exit(self, _: Instruction, lanes: Values) -> None:
        self.alive[lanes] = False

    # Operands

    def _register(self, name: str) -> Values:
        if name not in self.registers:
            made = np.zeros(len(self.thread), _TYPES[self.program.types[name]])
            if made.dtype != np.bool_:
                made.view(np.uint8)[:] = 0xA5
            self.registers[name] = made
        return self.registers[name]

    def _local(self, name: str) -> Values:
        size = max(64, self.program.local_size)
        return self.locals.setdefault(name, np.full((len(self.thread), size), 0xB7, np.uint8))

    def _get(self, name: str, kind: str, lanes: Values) -> Values:
        dtype = np.dtype(_TYPES[kind])
        if name in self.special:
            return _reinterpreted(self.special[name][lanes], dtype)
        if name in self.program.types:
            return _reinterpreted(self._register(name)[lanes], dtype)
        if name.startswith(("0f", "0d")):
            bits = np.uint32(int(name[2:], 16)) if name[1] == "f" else np.uint64(int(name[2:], 16))
            constant = np.full(len(lanes), bits)
            return constant.view(dtype if dtype.itemsize == bits.itemsize else "f4" if name[1] == "f" else "f8")
        if name in self.program.shared or name in self.program.local:
            return np.full(len(lanes), {**self.program.shared, **self.program.local}[name]).astype(dtype)
        if "_param_" in name:
            return np.zeros(len(lanes), dtype)
        if dtype.kind == "f":
            return np.full(len(lanes), float(name), dtype)
        value = int(name, 0) & ((1 << 8 * dtype.itemsize) - 1)
        return np.full(len(lanes), value, _UNSIGNED[dtype.itemsize]).view(dtype)

    def _put(self, name: str, value: Values, lanes: Values) -> None:
        if name == "_":
            return
        register = self._register(name)
        if value.dtype.itemsize == register.dtype.itemsize:
            register[lanes] = np.ascontiguousarray(value).view(register.dtype)
        else:  # a narrower load into a wider register
            wide = value.astype(np.int64 if value.dtype.kind == "i" else np.uint64)
            register[lanes] = wide.astype(_UNSIGNED[register.dtype.itemsize]).view(register.dtype)

    def _address(self, text: str, lanes: Values) -> tuple[str, Values]:
        """The name of what is addressed, if it has one, and addresses or offsets into it."""
        found = re.match(r"\[\s*([%$\w/]+)\s*(?:\+\s*(-?\d+))?\s*\]", text)
        assert found, text
        base, offset = found[1], int(found[2] or 0)
        if base in self.program.types:
            return "", self._register(base)[lanes].astype(np.int64) + offset
        if base in self.program.shared or base in self.program.local:
            return "", self._get(base, "s64", lanes) + offset
        return base, np.full(len(lanes), offset)

    # Memory

    def _access(self, instruction: Instruction, lanes: Values) -> None:
        load = instruction.op[0] == "ld"
        kind, space = instruction.op[-1], instruction.op[1]
        place, registers = instruction.arguments if not load else instruction.arguments[::-1]
        names = re.findall(r"[^{},\s]+", registers)
        size = np.dtype(_TYPES[kind]).itemsize
        base, address = self._address(place, lanes)
        values = None
        if not load:
            columns = [np.ascontiguousarray(self._get(name, kind, lanes)) for name in names]
            values = np.stack(columns, 1).view(np.uint8).reshape(len(lanes), -1)
        if space not in _SPACES:  # a generic address says by itself where it is
            space = next((name for name, begin in _WINDOWS.items() if (address >= begin).any()), "global")
            address = address - _WINDOWS.get(space, 0)
        if (address % (size * len(names))).any():
            raise MachineError(f"misaligned access of {size * len(names)} bytes")
        found = self._bytes(space, base, address, size * len(names), lanes, values)
        if load:
            columns_read = np.ascontiguousarray(found).view(_TYPES[kind]).reshape(len(lanes), -1)
            for name, column in zip(names, columns_read.T, strict=True):
                self._put(name, np.ascontiguousarray(column), lanes)

    def _copy(self, instruction: Instruction, lanes: Values) -> None:
        """`cp.async`: at once, which is as early as it may be; the emulator is as late as it may."""
        if "ca" not in instruction.op and "cg" not in instruction.op:
            return  # groups, and waiting for them
        (to, target), (_, source) = (self._address(place, lanes) for place in instruction.arguments[:2])
        size = int(instruction.arguments[2])
        taken = self._get(instruction.arguments[3], "u32", lanes) if len(instruction.arguments) > 3 else size
        if ((target | source) % size).any():
            raise MachineError(f"misaligned copy of {size} bytes")
        values = np.zeros((len(lanes), size), np.uint8)
        there = np.broadcast_to(taken == size, len(lanes))
        if there.any():
            values[there] = self._bytes("global", "", source[there], size, lanes[there], None)
        self._bytes("shared", to, target, size, lanes, values)

    def _bytes(self, space: str, base: str, address: Values, size: int, lanes: Values, values: Values | None) -> Values:
        places = address[:, None] + np.arange(size)
        if space == "param" and (not base or base in self.program.entry.parameters):
            return self.argument[places]
        if space in ("param", "local"):
            local = self._local(base)
            if values is not None:
                local[lanes[:, None], places] = values
            return local[lanes[:, None], places]
        if space.startswith("shared"):
            return self._shared_bytes(space, places, lanes, values)
        out, done = np.zeros((len(lanes), size), np.uint8), np.zeros(len(lanes), bool)
        for begin, content, writable in self.memory:
            inside = (
                (address >= begin) & (address + size <= begin + len(content)) & ~done & (writable or values is None)
            )
            if inside.any():
                at = places[inside] - begin
                if values is None:
                    out[inside] = content[at]
                else:
                    content[at] = values[inside]
                done |= inside
        if not done.all():
            raise MachineError(f"{'read' if values is None else 'write'} of {size} bytes outside of every buffer")
        return out

    def _shared_bytes(self, space: str, places: Values, lanes: Values, values: Values | None) -> Values:
        block = self.blocks[lanes]
        if space.endswith("cluster"):
            block, places = places[:, 0] >> _RANK_SHIFT, places & ((1 << _RANK_SHIFT) - 1)
        if (places < 0).any() or (places >= self.shared.bytes.shape[1]).any() or (block >= self.cluster).any():
            raise MachineError("access outside of shared memory")
        now = np.stack([lanes, self.passed[lanes], self.arrived[lanes], self.met[lanes], self.waited[lanes]], 1)
        kind = "read" if values is None else "write"
        self.shared.check(kind, block[:, None], places, now, self.blocks, self.warps)
        if values is not None:
            self.shared.bytes[block[:, None], places] = values
        return self.shared.bytes[block[:, None], places]

    # Arithmetic

    def _execute(self, instruction: Instruction, lanes: Values) -> None:
        op, arguments = instruction.op, instruction.arguments
        if op[0] in ("ld", "st"):
            return self._access(instruction, lanes)
        if op[0] == "cp":
            return self._copy(instruction, lanes)
        if op[0] == "mov" and ("{" in arguments[0] or "{" in arguments[1]):
            return self._move_parts(op[-1], arguments, lanes)
        if op[0] == "cvta":
            step = np.uint64(_WINDOWS.get(op[2] if op[1] == "to" else op[1], 0))
            value = self._get(arguments[1], "u64", lanes)
            return self._put(arguments[0], value - step if op[1] == "to" else value + step, lanes)
        if op[0] == "cvt":
            return self._put(arguments[0], self._converted(op, arguments, lanes), lanes)
        if op[0] not in _ARITHMETIC:
            raise NotImplementedError(instruction.text)
        kinds = _KINDS.get(op[0], lambda kind, count: [kind] * count)(op[-1], len(arguments) - 1)
        operands = [self._get(name, kind, lanes) for name, kind in zip(arguments[1:], kinds, strict=True)]
        with np.errstate(all="ignore"):
            return self._put(arguments[0], np.asarray(_ARITHMETIC[op[0]](op, *operands)), lanes)

    def _move_parts(self, kind: str, arguments: tuple[str, ...], lanes: Values) -> None:
        whole = np.dtype(_TYPES[kind]).itemsize
        target, source = (re.findall(r"[^{},\s]+", argument) for argument in arguments)
        if len(source) > 1:
            parts = [np.ascontiguousarray(self._get(name, f"b{8 * whole // len(source)}", lanes)) for name in source]
            return self._put(target[0], np.stack(parts, 1).view(_UNSIGNED[whole]).reshape(-1), lanes)
        value = np.ascontiguousarray(self._get(source[0], f"b{8 * whole}", lanes))
        for name, part in zip(
            target, value.view(_UNSIGNED[whole // len(target)]).reshape(len(lanes), -1).T, strict=True
        ):
            self._put(name, np.ascontiguousarray(part), lanes)
        return None

    def _converted(self, op: tuple[str, ...], arguments: tuple[str, ...], lanes: Values) -> Values:
        to, kind = op[-2], op[-1]
        if to in ("bf16x2", "f16x2"):
            narrow = _to_bf16 if to == "bf16x2" else _to_f16
            high, low = (narrow(self._get(name, "f32", lanes)).astype(np.uint32) for name in arguments[1:])
            return high << np.uint32(16) | low
        value = self._get(arguments[1], kind, lanes)
        with np.errstate(all="ignore"):
            if kind in ("f32", "f64"):
                rounded = {"rzi": np.trunc, "rni": np.rint, "rmi": np.floor, "rpi": np.ceil}
                for name, function in rounded.items():
                    value = function(value) if name in op else value
                if to not in ("f32", "f64"):
                    value = np.nan_to_num(value)
            return value.astype(_TYPES[to])


_COLLECTIVES: dict[str, Callable[[Machine, Instruction, Values], None]] = {
    "vote": Machine._vote,
    "shfl": Machine._shuffle,
    "ldmatrix": Machine._load_matrices,
    "mma": Machine._multiply_matrices,
}
"""What a warp does together; not `bar.warp.sync`, which does nothing."""

_CONTROL: dict[str, Callable[[Machine, Instruction, Values], None]] = {
    "bra": Machine._branch,
    "call": Machine._call,
    "ret": Machine._return,
    "exit": Machine._exit,
}


def _names(argument: str) -> list[str]:
    return re.findall(r"[^{},\s]+", argument)


def _bytes_at(begin: int, end: int) -> Values:
    return np.ctypeslib.as_array((ctypes.c_uint8 * (end - begin)).from_address(begin))


def _reinterpreted(value: Values, dtype: np.dtype) -> Values:
    """The same bits as another type; of another width, as registers are read: cut off or filled with zeros."""
    if value.dtype == dtype:
        return value
    if dtype == np.bool_:
        return value != 0
    if value.dtype.itemsize == dtype.itemsize:
        return np.ascontiguousarray(value).view(dtype)
    bits = np.ascontiguousarray(value).view(_UNSIGNED[value.dtype.itemsize])
    return bits.astype(_UNSIGNED[dtype.itemsize]).view(dtype)


def _to_f16(x: Values) -> Values:
    with np.errstate(all="ignore"):
        return x.astype(np.float16).view(np.uint16)


def _to_bf16(x: Values) -> Values:
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded)


def _from_bf16(x: Values) -> Values:
    return (x.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _fma(op: tuple[str, ...], a: Values, b: Values, c: Values) -> Values:
    """Of float32 exact but for one rounding in 64 bits of mantissa before the last; of float64 so, too."""
    wide = np.longdouble
    return (a.astype(wide) * b.astype(wide) + c.astype(wide)).astype(a.dtype)


def _multiplied(op: tuple[str, ...], a: Values, b: Values) -> Values:
    if "wide" in op:
        wide = {"s32": np.int64, "u32": np.uint64, "s16": np.int32, "u16": np.uint32}[op[-1]]
        return a.astype(wide) * b.astype(wide)
    if "hi" in op:
        bits = 8 * a.dtype.itemsize
        return np.array([(int(x) * int(y)) >> bits for x, y in zip(a, b, strict=True)], object).astype(a.dtype)
    return a * b


def _divided(op: tuple[str, ...], a: Values, b: Values) -> Values:
    if a.dtype.kind == "f":
        return (a / b).astype(a.dtype)
    quotient = abs(a.astype(object)) // abs(b.astype(object)) * np.where((a < 0) == (b < 0), 1, -1)
    return (quotient if op[0] == "div" else a.astype(object) - b.astype(object) * quotient).astype(a.dtype)


def _extreme(op: tuple[str, ...], a: Values, b: Values) -> Values:
    of = (
        (np.fmin if op[0] == "min" else np.fmax)
        if a.dtype.kind == "f"
        else (np.minimum if op[0] == "min" else np.maximum)
    )
    if "NaN" in op:
        of = np.minimum if op[0] == "min" else np.maximum
    if op[-1] not in ("f16x2", "bf16x2"):
        return of(a, b)
    of = np.fmin if op[0] == "min" else np.fmax
    halves = [np.ascontiguousarray(x).view(np.uint16) for x in (a, b)]
    if op[-1] == "f16x2":
        return of(*(half.view(np.float16) for half in halves)).view(np.uint32)
    return np.ascontiguousarray(_to_bf16(of(*(_from_bf16(half) for half in halves)))).view(np.uint32)


def _shifted(op: tuple[str, ...], a: Values, by: Values) -> Values:
    bits = 8 * a.dtype.itemsize
    small = np.minimum(by, bits - 1).astype(a.dtype)
    if op[0] == "shl":
        return np.where(by < bits, a << small, 0).astype(a.dtype)
    return np.where(by < bits, a >> small, a >> np.array(bits - 1, a.dtype) if a.dtype.kind == "i" else 0).astype(
        a.dtype
    )


def _funnel(op: tuple[str, ...], low: Values, high: Values, by: Values) -> Values:
    both = high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
    by = by.astype(np.uint64) & np.uint64(31)
    return ((both >> by) if op[1] == "r" else (both << by) >> np.uint64(32)).astype(np.uint32)


def _compared(op: tuple[str, ...], a: Values, b: Values) -> Values:
    name = op[1]
    nan = (np.isnan(a) | np.isnan(b)) if a.dtype.kind == "f" else np.zeros(len(a), bool)
    if name in ("nan", "num"):
        return nan if name == "nan" else ~nan
    ordered = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    if len(name) == 3:
        return ordered[name[:2]] | nan
    return ordered[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(name, name)] & ~nan


def _exponential(op: tuple[str, ...], x: Values) -> Values:
    y = np.exp2(x.astype(np.float64)).astype(x.dtype)
    return np.where(np.abs(y) < 2.0**-126, 0, y).astype(x.dtype) if "ftz" in op else y


def _counted(function: Callable[[int], int]) -> Callable[..., Values]:
    return lambda op, x: np.array([function(int(value)) & 0xFFFFFFFF for value in x], np.uint64).astype(np.uint32)


def _highest_bit(op: tuple[str, ...], x: Values) -> Values:
    places = [32 - int(v).bit_length() if "shiftamt" in op else int(v).bit_length() - 1 for v in x]
    return np.array([place & 0xFFFFFFFF for place in places], np.uint64).astype(np.uint32)


_ARITHMETIC: dict[str, Callable[..., Values]] = {
    "mov": lambda op, a: a,
    "mapa": lambda op, a, rank: a & np.uint32((1 << _RANK_SHIFT) - 1) | rank << np.uint32(_RANK_SHIFT),
    "add": lambda op, a, b: a + b,
    "sub": lambda op, a, b: a - b,
    "mul": _multiplied,
    "mad": lambda op, a, b, c: _multiplied(op, a, b) + c.astype(_multiplied(op, a, b).dtype),
    "fma": _fma,
    "div": _divided,
    "rem": _divided,
    "min": _extreme,
    "max": _extreme,
    "neg": lambda op, a: -a,
    "abs": lambda op, a: np.abs(a),
    "and": lambda op, a, b: a & b,
    "or": lambda op, a, b: a | b,
    "xor": lambda op, a, b: a ^ b,
    "not": lambda op, a: ~a,
    "shl": _shifted,
    "shr": _shifted,
    "shf": _funnel,
    "setp": _compared,
    "selp": lambda op, a, b, choose: np.where(choose, a, b),
    "ex2": _exponential,
    "lg2": lambda op, x: np.log2(x.astype(np.float64)).astype(x.dtype),
    "rcp": lambda op, x: (1 / x).astype(x.dtype),
    "sqrt": lambda op, x: np.sqrt(x),
    "rsqrt": lambda op, x: (1 / np.sqrt(x.astype(np.float64))).astype(x.dtype),
    "popc": _counted(lambda x: x.bit_count()),
    "brev": _counted(lambda x: int(f"{x:032b}"[::-1], 2)),
    "clz": _counted(lambda x: 32 - x.bit_length()),
    "bfind": _highest_bit,
    "copysign": lambda op, sign, a: np.copysign(a, sign),
    "testp": lambda op, x: {"finite": np.isfinite, "infinite": np.isinf, "notanumber": np.isnan}[op[1]](x),
}

_KINDS: dict[str, Callable[[str, int], list[str]]] = {
    "mapa": lambda kind, count: ["u32", "u32"],
    "shl": lambda kind, count: [kind, "u32"],
    "shr": lambda kind, count: [kind, "u32"],
    "shf": lambda kind, count: ["u32", "u32", "u32"],
    "selp": lambda kind, count: [kind, kind, "pred"],
    "max": lambda kind, count: ["u32" if "x2" in kind else kind] * count,
    "min": lambda kind, count: ["u32" if "x2" in kind else kind] * count,
    "mad": lambda kind, count: [kind, kind, kind],
    "popc": lambda kind, count: [kind],
}
