"""Just enough of cubin files to count memory instructions, and of nvdisasm's text to count those beside products."""

from __future__ import annotations

import re
import struct
from collections import Counter

from prefuse.doctor.machine_code import parsed

LOAD, STORE, LOAD_LOCAL, STORE_LOCAL, LOAD_SHARED, STORE_SHARED = "LDG", "STG", "LDL", "STL", "LDS", "STS"
_OPCODES = {
    0x981: LOAD,
    0x986: STORE,
    0x983: LOAD_LOCAL,
    0x387: STORE_LOCAL,
    0x984: LOAD_SHARED,
    0x388: STORE_SHARED,
}
_TEXT = ".text."
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 8, 6: 16}


def memory_instructions(cubin: bytes) -> Counter[tuple[str, int]]:
    """How many loads and stores of each width in bytes the code holds."""
    counts: Counter[tuple[str, int]] = Counter()
    for code in code_sections(cubin).values():
        for low, high in struct.iter_unpack("<QQ", code):
            name = _OPCODES.get(low & 0xFFF)
            if name:
                counts[name, _BYTES.get(high >> 9 & 7, 0)] += 1
    return counts


def code_sections(cubin: bytes) -> dict[str, bytes]:
    """The code of each kernel, by its name; it holds the functions that the kernel calls."""
    assert cubin[:4] == b"\x7fELF"
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    names = headers[names_index][4]
    found = {}
    for begin, kind, _, _, offset, length in headers:
        name = cubin[names + begin : cubin.index(b"\0", names + begin)].decode()
        if kind == 1 and name.startswith(_TEXT):
            found[name.removeprefix(_TEXT)] = cubin[offset : offset + length]
    return found


def instructions_per_product(sass: str) -> float:
    """Of the shortest loop with products of tensor cores, all its branches counted."""
    instructions, labels = parsed(sass)
    turns = []
    for end, text in enumerate(instructions, 1):
        jump = re.search(r"\bBRA.*`\((\.L_\S+?)\)", text)
        if jump and labels[jump[1]] < end:
            turns.append(instructions[labels[jump[1]] : end])
    counted = [(len(turn), sum("HMMA" in text for text in turn)) for turn in turns]
    length, products = min((length, products) for length, products in counted if products)
    return length / products
