"""Read pickles as data: parsed and mapped, never executed.

A pickle is a program for a small machine with a stack. `Machine` is the one that Python's `pickle`
module has, without the opcodes that import, call or make objects. A call that a pickle asks for is
recorded as a `Call`; `Unfolding` turns it into an array, a number or bytes, or rejects it. So the
stack holds only None, numbers, text, bytes, lists, tuples, `Items` and `Call`s.

A value can be stored once and used many times: a list that holds another list twice, forty levels
deep, has 2^40 items in 300 bytes. So each use of a value is paid for, from a budget as large as the
file. Byte strings of 256 bytes or more are views into the file and take no memory.
"""

import math
import mmap
import pickle
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plumbing import containers, explained, printable, regular

MAP_FROM = 256  # bytes; longer byte strings are views into the file, shorter ones are copied
KINDS = r"[biufUSO][1-9][0-9]{0,6}"  # numpy's types of data: no fields, no dates
FACTORIES = ("bool", "dict", "float", "int", "list", "long", "set", "str", "tuple", "unicode")
NAMES = {  # all that a pickle may name; numpy._core is numpy.core, __builtin__ is builtins
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "numpy.core.multiarray._reconstruct": "array",
    "numpy.core.multiarray.scalar": "scalar",
    "numpy.core.numeric._frombuffer": "array of bytes",
    "_codecs.encode": "encode",  # protocols 0-2 spell bytes by this and the next
    "builtins.bytes": "bytes",
    "collections.OrderedDict": "dict",
    "collections.defaultdict": "dict",
    **{f"builtins.{name}": "type" for name in FACTORIES},
}
ALLOWED = (  # opcodes that only build values, as Python's own machine runs them
    "FLOAT BINFLOAT STRING SHORT_BINSTRING BINSTRING INT BININT BININT1 BININT2 LONG LONG1 LONG4 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES NONE NEWTRUE NEWFALSE "
    "EMPTY_LIST LIST APPEND APPENDS SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 MARK "
    "MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL PROTO STOP"
)


def read(path: str | Path) -> Any:
    """A file's content as dicts, lists, tuples, strings, numbers and arrays; nothing in it is run.

    Arrays of protocols 3-5 are read-only views into the file. All text is valid Unicode, and the
    keys of dicts are text. Raises UserError for any other content and for any other file.
    """
    with explained(f"{path} cannot be read"), open(regular(path), "rb") as file:
        source = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    containers.reject(path, source[:500])
    with explained(f"{path} is cut short, damaged or no pickle of data"):
        return Unfolding(1000 + len(source)).value(Machine(path, source).load())


@dataclass(eq=False, slots=True)
class Call:
    """A call that a pickle asks for, recorded and not made: function(*args), then its state."""

    function: str
    args: Any = None
    state: Any = None


class Items(list):
    """The (key, value) pairs of a dict; nothing is hashed, since keys can be chosen to collide."""

    def __setitem__(self, key: Any, value: Any) -> None:
        self.append((key, value))


class Machine(pickle._Unpickler):
    """Python's own machine over a memory map, with the opcodes that build plain values.

    `dispatch` has one function per opcode. If an opcode asks for more bytes than the map has, the
    map gives those that are left, and the next opcode is missing.
    """

    def __init__(self, path: str | Path, source: mmap.mmap):
        super().__init__(source, encoding="latin1")
        self.path, self.map, self.view = path, source, memoryview(source)

    def find_class(self, module: str, name: str) -> Call:
        """The function that a pickle names, if data may name it; nothing is imported."""
        name = printable(f"{module}.{name}")
        known = name.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if known not in NAMES:
            containers.reject(self.path, name.encode())
            advice = "save it again as dicts, lists and arrays"
            raise ValueError(f"it asks for {name}, but nothing was run: {advice}")
        return Call(NAMES[known])

    def load_other(self) -> None:
        code = chr(self.map[self.map.tell() - 1])
        raise ValueError(f"its opcode {code!r} is not for data: nothing was run")

    def load_reduce(self) -> None:
        """Record a call; OrderedDict() and defaultdict(type) are dicts."""
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Call) or function.args is not None:
            raise TypeError("it calls a value that is not a function: nothing was run")
        match function.function, args:
            case "dict", () | (Call(args=None),):
                self.append(Items())
            case _:
                self.append(Call(function.function, args))

    def load_build(self) -> None:
        """Record the state of a call."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Call):
            raise TypeError("it gives a state to a value without one: nothing was run")
        self.stack[-1].state = state

    def load_put(self) -> None:
        """Number a value; large integers could be chosen to collide as keys of the memo."""
        index = int(self.readline())
        if not 0 <= index < 1 << 32:
            raise ValueError(f"it numbers a value {index:,}")
        self.memo[index] = self.stack[-1]

    def load_dict(self) -> None:
        """A dict of the values since the last mark: key, value, key, value, ..."""
        items = self.pop_mark()
        self.append(Items(zip(items[::2], items[1::2], strict=True)))

    def load_bytes(self, size: int) -> None:
        """Bytes whose length stands in `size` bytes; not copied if they are many."""
        n = int.from_bytes(self.read(size), "little")
        if n < MAP_FROM:
            self.append(self.read(n))
        else:
            start = self.map.tell()
            self.map.seek(start + n)  # raises beyond the end
            self.append(self.view[start : start + n])

    dispatch = dict.fromkeys(range(256), load_other)
    dispatch |= {
        opcode: function
        for opcode, function in pickle._Unpickler.dispatch.items()
        if pickletools.code2op[chr(opcode)].name in ALLOWED.split()
    }
    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.DICT[0]: load_dict,
        pickle.PUT[0]: load_put,
        pickle.EMPTY_DICT[0]: lambda self: self.append(Items()),
        pickle.BINBYTES[0]: lambda self: self.load_bytes(4),
        pickle.BINBYTES8[0]: lambda self: self.load_bytes(8),
        pickle.BYTEARRAY8[0]: lambda self: self.load_bytes(8),
        pickle.FRAME[0]: lambda self: self.read(8),  # a frame is only a hint to read ahead
    }


class Unfolding:
    """Turns what the machine built into plain values. Each use of a value is paid from a budget.

    A value costs 1, and 1 more for each 8 bytes that it has, whenever it is met. So a value that
    is stored once and used everywhere exhausts the budget, and an array costs less than its bytes.
    """

    def __init__(self, budget: int):
        self.left = budget

    def pay(self, price: int) -> None:
        self.left -= price
        if self.left < 0:
            raise ValueError("it would unfold to far more than the file has bytes")

    def value(self, node: Any) -> Any:
        """The plain value of a node."""
        self.pay(1)
        if isinstance(node, str):
            node.encode("utf-8")  # raises for half a surrogate pair
        if isinstance(node, str | bytes | memoryview):
            self.pay(len(node) // 8)
        if isinstance(node, Items):
            return {self.key(key): self.value(item) for key, item in node}
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if isinstance(node, tuple):
            return tuple([self.value(item) for item in node])
        if isinstance(node, Call):
            return self.result(node)
        return node

    def key(self, node: Any) -> str:
        """The key of a dict, as text; Python 2 and some files have bytes."""
        key = self.value(node)
        key = key.decode("utf-8") if isinstance(key, bytes) else key
        if not isinstance(key, str):
            raise TypeError("it has a key that is not text")
        return key

    def result(self, call: Call) -> Any:
        """The value of a call, made anew and paid for each time that it is used."""
        if call.function == "array":
            _, shape, dtype, fortran, raw = self.value(call.state)
            return self.array(raw, dtype, shape, "F" if fortran else "C")
        if call.function == "dtype":
            # Both are checked before numpy parses them: "O,i1" would be a struct with pointers.
            match call.args, call.state:
                case (str() as kind, *_), (_, "<" | ">" | "=" | "|" as order, *_):
                    if re.fullmatch(KINDS, kind):
                        return np.dtype(order + kind)
            raise ValueError("it has an array of neither numbers nor text")
        match call.function, self.value(call.args):
            case "array of bytes", (raw, dtype, shape, ("C" | "F") as order):
                return self.array(raw, dtype, shape, order)
            case "scalar", (dtype, bytes() | str() as raw):
                return self.array(raw, dtype, (), "C")[()]
            case "encode", (str() as text, "latin1"):
                return text.encode("latin1")
            case "bytes", ():
                return b""
            case "dict", (list() as pairs,):  # an OrderedDict of Python 2
                return {self.key(key): item for key, item in pairs}
        raise ValueError(f"it calls {call.function} with arguments that make neither data nor text")

    def array(self, raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        """An array over `raw`, not copied; an array of objects takes its items from a list only."""
        # The product of a shape of thousands of integers would take minutes.
        is_array = isinstance(dtype, np.dtype) and isinstance(shape, tuple) and len(shape) <= 4
        if not is_array or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("it has an array without a type, or without a shape of integers")
        self.pay(math.prod(max(n, 1) for n in shape) * dtype.itemsize // 8)  # zeros cost, too
        n = math.prod(shape)
        if dtype.kind == "O":
            if not isinstance(raw, list) or len(raw) != n:
                raise ValueError(f"it has an array of {n:,} objects without as many values")
            items = np.empty(n, object)
            for i, item in enumerate(raw):
                items[i] = item
            return items.reshape(shape)  # objects are always listed in C order
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(raw, bytes | memoryview) or len(raw) != n * dtype.itemsize:
            raise ValueError(f"it has an array of {n:,} values and not the bytes for them")
        x = np.ndarray(shape, dtype, raw, order=order)
        if dtype.kind == "U":  # numpy makes strings of code points that do not exist
            codes = np.frombuffer(x.tobytes(), dtype.byteorder + "u4")
            if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
                raise ValueError("it has text that is not Unicode")
        return x
