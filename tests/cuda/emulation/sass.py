"""Executes the machine code of CUDA kernels: SASS, as cuobjdump prints it.

A register is an array of the 32 lanes of a warp, an instruction a function of such arrays: INSTRUCTIONS. What is not in the
table, be it a modifier, is an error. So is an access that is misaligned or outside of the launch's memory. Fresh registers and
shared memory are full of 0xff bytes. Approximate instructions are those of the emulation.

Lanes run in lockstep, so a missing __syncwarp() shows in the emulation only. Where they part, those at the lowest address go
first. Time and weak memory order are not modelled.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import re

import numpy as np

from . import kernels

LANES, WARPS = 32, 4  # csrc/cuda/block.h

# Rows of registers and of predicates: those that instructions write, those that they do not, and constant memory.
_FIRST_ROW = {"R": 0, "UR": 256, "P": 0, "UP": 8}
_ZEROS = ("RZ", "URZ", "SR_CgaCtaId", "SR_SWINHI")  # the last two matter in clusters of blocks only
_FIXED = {"PT": 7, "UPT": 15, "SR_TID.X": 516, "SR_CTAID.X": 517, **dict.fromkeys(_ZEROS, 512)}
_CONSTANTS = 520
_OPERAND = re.compile(r"([-~!]?)(\|?)(?:(U?[RP])(\d+|[ZT])|c\[0x0\]\[(\w+)\]|(SR_\S+))\|?((?:\.\w+)*)")


class Operand:
    """A row of registers or predicates, an address as a sum of ``terms``, or a number."""

    def __init__(self, text: str):
        self.text = text.replace(".reuse", "")
        found = _OPERAND.fullmatch(self.text)
        self.sign, self.absolute, bank, number, constant, special, self.suffix = found.groups() if found else [""] * 7
        self.row = _FIXED.get(special or f"{bank}{number}")
        self.is_fixed = self.row is not None
        if constant:
            self.row = _CONSTANTS + int(constant, 16) // 4
        elif bank and not self.is_fixed:
            self.row = _FIRST_ROW[bank] + int(number)
        self.is_predicate, self.is_uniform = bank in ("P", "UP"), bank in ("UR", "UP")
        is_address = self.text.startswith(("[", "desc["))
        self.terms = [Operand(term) for term in self.text[:-1].split("[")[-1].split("+")] if is_address else []


_TYPES = {"u": np.uint32, "U": np.uint64, "i": np.int32, "I": np.int64, "f": np.float32, "d": np.float64}
_BYTES = {None: 4, ".U8": 1, ".U16": 2, ".64": 8, ".128": 16}


class Warp:
    def __init__(self, code, registers, memory):
        self.code, self.registers, self.memory = code, registers, memory
        self.predicates = np.zeros((16, LANES), bool)
        self.predicates[[_FIXED["PT"], _FIXED["UPT"]]] = True

    def run(self):
        """Until all lanes have ended, with a pause at each barrier of the block."""
        following, live = np.zeros(LANES, int), np.ones(LANES, bool)
        while live.any():
            here = following[live].min()
            present = live & (following == here)
            following[present] += 1
            instruction = self.code[here]
            operands = instruction.operands
            self.active = present & self.read("p", instruction.guard)
            match instruction.kind:
                case ["BAR" | "WARPSYNC", *_] | ["BRA", "DIV"]:
                    assert (present == live).all(), f"{instruction.text} without all lanes"
                    if instruction.kind[0] == "BAR":
                        yield
                case ["BRA" | "CALL", *_]:
                    taken = self.active & self.read("p", operands[0]) if len(operands) == 2 else self.active
                    following[taken] = int(operands[-1].text, 0) // 16
                case ["RET", *_]:
                    following[self.active] = self.read("u", operands[0])[self.active] // 16
                case ["EXIT"]:
                    live &= ~self.active
                case _ if self.active.any():
                    self._execute(instruction)

    def _execute(self, instruction):
        if instruction.function is None:
            raise NotImplementedError(f"sass.INSTRUCTIONS has no {instruction.text}")
        instruction.executed = True
        warp = [self] if "w" in instruction.letters else []
        sources = map(self.read, instruction.letters.replace("w", ""), instruction.sources)
        results = instruction.function(*warp, *instruction.modifiers, *sources)
        for result in results if isinstance(results, tuple) else (results,):
            is_predicate = result.dtype == bool
            rows = result[None] if is_predicate else np.ascontiguousarray(result).view(np.uint32).reshape(LANES, -1).T
            for target in instruction.targets:
                if target.is_predicate == is_predicate and not target.is_fixed:
                    place = (self.predicates if is_predicate else self.registers)[target.row :][: len(rows)]
                    if target.is_uniform:  # one value, kept in all lanes
                        place[:] = rows[:, self.active][:, :1]
                    else:
                        np.copyto(place, rows, where=self.active)

    def read(self, letter, operand):
        """u, i, f: of 32 bits; f also a float16 or two float32, as its suffix says. U, I, d: of 64 bits. 4: four registers.
        p: a predicate. P: all, as bits. G, S: an address in global or shared memory. n: a number of the instruction."""
        if letter in "-n":
            return int(operand.text, 0) if letter == "n" else None
        if letter == "p":
            return self.predicates[operand.row] ^ (operand.sign == "!")
        if letter == "P":
            return np.packbits(self.predicates[:7], axis=0, bitorder="little")[0].astype(np.uint32)
        if letter in "GS":
            return sum(self.read("U" if letter == "G" else "u", term) for term in operand.terms)
        type_ = np.dtype(_TYPES.get(letter, np.uint32))
        if operand.row is None:
            number = float(operand.text) if letter in "fd" else int(operand.text, 0) & (1 << 8 * type_.itemsize) - 1
            return np.array([number] * LANES).astype(type_)
        words = np.ascontiguousarray(self.registers[operand.row : operand.row + 4].T)  # [lane, word]
        if letter == "4":
            return words
        if operand.suffix.startswith(".H"):
            value = words.view(np.float16)[:, int("H1" in operand.suffix)].astype(np.float32)
        elif operand.suffix.startswith(".F32"):
            columns = {".F32": [0], ".F32x2.HI_LO": [0, 1], ".F32x2.LO_HI": [1, 0]}[operand.suffix]
            value = words.view(np.float32)[:, columns]
        else:
            value = words.view(type_)[:, 0]
        value = np.abs(value) if operand.absolute else value
        return -value if operand.sign == "-" else ~value if operand.sign == "~" else value

    def _bytes(self, address, count):
        """Those at the address of each active lane: an array, and their indices."""
        address = address[self.active].astype(np.uint64)
        for start, array in self.memory.items():
            offset = address - np.uint64(start)
            if (offset + np.uint64(count) <= array.size).all() and (offset % np.uint64(count) == 0).all():
                return array, offset[:, None].astype(int) + np.arange(count)
        raise MemoryError(f"{count} bytes at {[*map(hex, address)]}: misaligned, or outside of the launch's memory")

    def load(self, size, address):
        array, indices = self._bytes(address, _BYTES[size])
        values = np.zeros((LANES, max(_BYTES[size], 4)), np.uint8)
        values[self.active, : _BYTES[size]] = array[indices]
        return values.view(np.uint32)

    def store(self, size, address, words):
        array, indices = self._bytes(address, _BYTES[size])
        array[indices] = words[self.active].view(np.uint8)[:, : _BYTES[size]]
        return ()

    def increment(self, address, limit):
        assert self.active.sum() == 1, "an atomic of several lanes"
        old = self.load(None, address)
        self.store(None, address, np.where(old >= limit[:, None], 0, old + 1).astype(np.uint32))
        return old

    def shuffle(self, kind, value, lane, _):
        assert self.active.all(), "a shuffle without all lanes"
        return value[(np.arange(LANES, dtype=np.uint32) ^ lane if kind == "BFLY" else lane) % LANES]

    def vote(self, predicate):
        votes = predicate & self.active
        return np.packbits(votes, bitorder="little").view(np.uint32).repeat(LANES), np.full(LANES, votes.any())


def _wide(low, high):
    return low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)


def _upper(value):
    return (value.view(np.uint64) >> np.uint64(32)).astype(np.uint32)


def _add(*terms):
    # The carry is that of terms without a minus sign: no kernel takes it of others.
    total = sum(term.astype(np.uint64) for term in terms)
    return total.astype(np.uint32), total >> np.uint64(32) != 0


def _add_upper(low, term, high, shift, carry=np.False_):
    return _add(_upper(_wide(low, high) << np.uint64(shift)), term, carry)


def _shift(direction, kind, upper, low, count, high):
    value = _wide(low, high).view(np.int64 if kind == "S" else np.uint64)
    value = (operator.lshift if direction == "L" else operator.rshift)(value, count.astype(value.dtype))
    return _upper(value) if upper else value.astype(np.uint32)


def _logic(a, b, c, table, predicate):
    terms = ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in range(8) if table >> i & 1)
    bits = functools.reduce(operator.or_, terms, np.zeros(LANES, np.uint32))
    return bits, (bits != 0) | predicate


def _compare(comparison, combination, a, b, predicate, lower=None):
    """``lower``: the result for the lower halves."""
    result = getattr(operator, comparison.lower())(a, b)
    if lower is not None:
        result = result & lower if comparison == "EQ" else result | lower
    return result & predicate if combination == "AND" else result | predicate


def _compare_numbers(comparison, combination, a, b, predicate):
    results = {"GT": a > b, "GTU": ~(a <= b), "GEU": ~(a < b), "NEU": a != b, "NAN": np.isnan(a) | np.isnan(b)}
    return results[comparison] & predicate if combination == "AND" else results[comparison] | predicate


def _multiply_add(a, b, c):
    # With 64 bits in between: rounded twice, which seldom matters.
    return (a.astype(np.longdouble) * b + c).astype(a.dtype)


# By opcode: how its sources are read, in the letters of Warp.read(), and what it makes of them. The function gets the warp first
# if there is a w, then the groups of the pattern. A bool goes to a target that is a predicate, anything else to a register.
INSTRUCTIONS = {
    r"NOP|YIELD|MEMBAR\.\S+|(?:CGA)?ERRBAR|CCTL\.IVALL|(?:BSSY|BSYNC|BMOV)\S*": ("", lambda: ()),
    # moves
    r"U?MOV|R2UR|S2U?R|U?LDC|LDCU": ("u", lambda a: a),
    r"(?:U?MOV|U?LDC|LDCU)\.64": ("U", lambda a: a),
    r"LDCU\.128": ("4", lambda a: a),
    r"CS2R": ("-", lambda _: np.zeros(LANES, np.uint64)),
    r"P2R": ("Puu", lambda predicates, a, mask: a & ~mask | predicates & mask),
    r"U?SEL": ("uup", lambda a, b, p: np.where(p, a, b)),
    r"FSEL": ("ffp", lambda a, b, p: np.where(p, a, b)),
    r"SHFL\.(BFLY|IDX)": ("wuu-", Warp.shuffle),
    r"VOTEU?\.ANY": ("wp", Warp.vote),
    # memory
    r"LDG\.E(\.U16|\.64)?(?:\.STRONG\.GPU|\.SYS)?": ("wG", Warp.load),
    r"STG\.E(\.U16|\.64)?(?:\.SYS)?": ("wG4", Warp.store),
    r"LDS(?:\.U)?(\.U8|\.64|\.128)?": ("wS", Warp.load),
    r"STS(\.U8|\.64|\.128)?": ("wS4", Warp.store),
    r"ATOMG\.E\.INC\.STRONG\.GPU": ("wGu", Warp.increment),
    # integers
    r"U?IADD3": ("uuu", _add),
    r"U?IADD3\.X": ("uuupp", _add),
    r"VIADD": ("uu", _add),
    r"IADD\.64": ("UU", operator.add),
    r"U?IMAD(?:\.MOV|\.IADD|\.SHL)?(?:\.U32)?": ("uuu", lambda a, b, c: a * b + c),
    r"IMAD\.X": ("uuup", lambda a, b, c, carry: a * b + c + carry),
    r"U?IMAD\.WIDE": ("iiI", lambda a, b, c: a.astype(np.int64) * b + c),
    r"U?IMAD\.WIDE\.U32": ("uuU", lambda a, b, c: a.astype(np.uint64) * b + c),
    r"IMAD\.HI\.U32": ("uuU", lambda a, b, c: _upper(a.astype(np.uint64) * b + c)),
    r"U?LEA": ("uun", lambda a, term, shift: _add(a << np.uint32(shift), term)),
    r"U?LEA\.HI": ("uuun", _add_upper),
    r"U?LEA\.HI\.X": ("uuunp", _add_upper),
    r"LEA\.HI\.X\.SX32": ("iunp", lambda a, term, *rest: _add_upper(a.view(np.uint32), term, a >> 31, *rest)),
    r"U?SHF\.(L|R)\.([US])(?:32|64)(\.HI)?": ("uuu", _shift),
    r"U?LOP3\.LUT": ("uuunp", _logic),
    r"(?:I|VI|UVI)MNMX(?:\.S32)?": ("iip", lambda a, b, p: np.where(p, np.minimum(a, b), np.maximum(a, b))),
    r"VIADDMNMX": ("iiip", lambda a, b, c, p: np.where(p, np.minimum(a + b, c), np.maximum(a + b, c))),
    # predicates
    r"U?ISETP\.(\w\w)\.(AND|OR)": ("iip", _compare),
    r"U?ISETP\.(\w\w)\.U32\.(AND|OR)": ("uup", _compare),
    r"U?ISETP\.(\w\w)\.S64\.(AND|OR)": ("IIp", _compare),
    r"U?ISETP\.(EQ|NE)\.(AND|OR)\.EX": ("uupp", _compare),
    r"U?PLOP3\.LUT": ("pppu-", lambda a, b, c, table, _: (table >> (4 * a + 2 * b + c).astype(np.uint32) & 1) != 0),
    r"U?FSETP\.(\w+)\.(AND|OR)": ("ffp", _compare_numbers),
    r"FSET\.BF\.(\w+)\.(AND|OR)": ("ffp", lambda *given: _compare_numbers(*given).astype(np.float32)),
    # numbers
    r"FADD2?|HADD2\.F32": ("ff", operator.add),
    r"U?FMUL2?": ("ff", operator.mul),
    r"FFMA2?": ("fff", _multiply_add),
    r"DADD": ("dd", operator.add),
    r"DMUL": ("dd", operator.mul),
    r"DFMA": ("ddd", _multiply_add),
    r"FMNMX": ("ffp", lambda a, b, p: np.where(p, np.fmin(a, b), np.fmax(a, b))),
    r"FMNMX\.NAN": ("ffp", lambda a, b, p: np.where(p, np.minimum(a, b), np.maximum(a, b))),
    r"MUFU\.RCP": ("f", np.vectorize(kernels.rcp_approx, otypes="f")),
    r"MUFU\.EX2": ("f", np.vectorize(kernels.ex2_approx, otypes="f")),
    r"MUFU\.RSQ": ("f", np.vectorize(kernels.rsqrt_approx, otypes="f")),
    r"MUFU\.RCP64H": ("u", lambda a: _upper(1 / _wide(0 * a, a).view(np.float64))),
    r"F2F\.F64\.F32": ("f", lambda a: a.astype(np.float64)),
    r"F2F\.F32\.F64": ("d", lambda a: a.astype(np.float32)),
    r"F2I\.FTZ\.U32\.TRUNC\.NTZ": ("f", lambda a: np.clip(a.astype(np.float64), 0, 2**32 - 1).astype(np.uint32)),
    r"U?I2F\.U32\.RP": ("u", lambda a: a.astype(np.float32)),  # exact: the sizes are small
    r"I2F\.F64\.S64": ("I", lambda a: a.astype(np.float64)),
    # Its factors are RZ.
    r"HFMA2(?:\.MMA)?": ("--ff", lambda _a, _b, *pair: np.stack(pair[::-1], 1).astype(np.float16)),
}


class Instruction:
    def __init__(self, text: str):
        self.text = text
        self.executed = False
        guard, opcode, operands = re.fullmatch(r"(?:@(\S+) +)?(\S+) *(.*)", text).groups()
        self.guard = Operand(guard or "PT")
        self.kind = opcode.split(".")[:2]
        self.operands = [Operand(operand) for operand in re.split(", | ", operands) if operand]
        self.letters, self.function, self.modifiers = "", None, ()
        for pattern, (letters, function) in INSTRUCTIONS.items():
            if found := re.fullmatch(pattern, opcode):
                self.letters, self.function, self.modifiers = letters, function, found.groups()
        targets = len(self.operands) - len(self.letters.replace("w", ""))
        self.targets, self.sources = self.operands[:targets], self.operands[targets:]


def run(architecture, listing, blocks, shared_bytes, arguments, memory):
    """Executes a launch, and returns its instructions. ``memory`` has the sizes in bytes of its arrays by their addresses."""
    code = [Instruction(text) for text in listing]
    # Where nvcc expects arguments and number of blocks in constant memory, and shared memory.
    arguments_at, blocks_at = (0x380, 0x370) if architecture >= 100 else (0x210 if architecture >= 90 else 0x160, 0xC)
    shared_at = 0x400 if architecture >= 90 else 0
    registers = np.full((_CONSTANTS + 0x500, LANES), 0xFFFFFFFF, np.uint32)
    registers[_FIXED["RZ"] :][:4] = 0
    registers[_CONSTANTS + blocks_at // 4] = blocks
    registers[_CONSTANTS + arguments_at // 4 :][: len(arguments) // 4] = np.frombuffer(arguments, np.uint32)[:, None]
    arrays = {at: np.frombuffer((ctypes.c_uint8 * size).from_address(at), np.uint8) for at, size in memory.items()}
    for block in range(blocks):
        arrays[shared_at] = np.full(shared_bytes, 0xFF, np.uint8)
        registers[_FIXED["SR_CTAID.X"]] = block
        warps = []
        for warp in range(WARPS):
            registers[_FIXED["SR_TID.X"]] = LANES * warp + np.arange(LANES)
            warps.append(Warp(code, registers.copy(), arrays).run())
        with np.errstate(all="ignore"):
            while warps:
                warps = [warp for warp in warps if next(warp, "ended") is None]
    return code
