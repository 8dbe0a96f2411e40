"""Pickles as data: parsed, mapped, never executed.

A pickle is a program for a small machine with a stack. `parse` runs the opcodes that build values
and refuses the others: nothing is imported, nothing is called. A call that the pickle asks for is
written down as a `Call`, and `Unfolding` makes an array, a number or bytes of it, or refuses.

A value can be used often and be spelled once: a list that holds another twice, forty times over,
has 2^40 items in 300 bytes. So whatever is used is paid for, as often as it is used, from a budget
as large as the file. Byte strings from 256 bytes on are views into the file and cost no memory.
"""

import codecs
import math
import mmap
import os
import pickletools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from plumbing import UserError, explained, printable, regular

OPCODES = 10_000_000  # in one file: MOSEI in MISA's form has about 4 million
STACK = 1_000_000  # values that wait to be put somewhere: picklers put 1,000 at a time
COPY_LIMIT = 1 << 30  # bytes that one opcode may copy: a damaged length must not fill the memory
MAP_FROM = 256  # bytes; longer byte strings are views into the file, shorter ones are copied
NAMES = {  # all that a pickle may name; numpy._core is numpy.core, __builtin__ is builtins
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "numpy.core.multiarray _reconstruct": "array",
    "numpy.core.multiarray scalar": "scalar",
    "numpy.core.numeric _frombuffer": "array of bytes",
    "_codecs encode": "encode",  # protocols 0-2 spell bytes by this and the next
    "builtins bytes": "bytes",
}
ENCODINGS = {"string": "latin1", "unicodestring": "utf-8", "bytes": None, "bytearray": None}
LITERALS = {"FLOAT", "BINFLOAT", "STRING", "SHORT_BINSTRING", "BINSTRING"}
LITERALS |= {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
LITERALS |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
LITERALS |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"}
NOT_PICKLES = {
    b"<": "is a web page, not a pickle: the download went wrong",
    b"version https://git-lfs": "is a Git LFS pointer, not the data: run `git lfs pull`",
    b"PK\x03\x04": "is a zip archive, not a pickle: unpack it first",
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"\x89HDF": "is an HDF5 file (the CMU SDK's .csd?), not a pickle of processed features",
}


def read(path):
    """A file's content as dicts, lists, tuples, strings, numbers and arrays; nothing in it is run.

    Arrays of protocols 3-5 are read-only views into the file. All text is valid Unicode, and the
    keys of dicts are text. Raises UserError for whatever else a file, or no file, may hold.
    """
    with explained(f"{path} cannot be read"), open(regular(path), "rb") as file:
        if os.path.getsize(path) == 0:
            raise UserError(f"{path} is empty: 0 bytes")
        cursor = Cursor(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for magic, what in NOT_PICKLES.items():
        if cursor.map[:200].lstrip().startswith(magic):
            raise UserError(f"{path} {what}")
    with explained(f"{path} is damaged or no pickle of data"):
        try:
            return Unfolding(1000 + len(cursor.view)).value(parse(cursor))
        except RecursionError:
            raise ValueError("its values lie in each other too deeply") from None


class Cursor:
    """Where `parse` is in a memory map; every length is checked before it is believed."""

    def __init__(self, source):
        self.map, self.view, self.position = source, memoryview(source), 0

    def read(self, n):
        """The next n bytes, copied. (pickletools' readers call this, and `readline`.)"""
        if n > COPY_LIMIT:
            raise ValueError(f"it asks for {n:,} bytes at once at byte {self.position:,}")
        return bytes(self.slice(n))

    def slice(self, n):
        """The next n bytes, not copied."""
        end = self.position + n
        if end > len(self.view):
            raise ValueError(f"it is cut short, byte {end:,} is missing")
        found, self.position = self.view[self.position : end], end
        return found

    def readline(self):
        end = self.map.find(b"\n", self.position, self.position + COPY_LIMIT)
        if end < 0:
            raise ValueError(f"no line ends after byte {self.position:,}")
        return self.read(end + 1 - self.position)


def opcodes(cursor):
    """(name, argument) of one opcode after the other; the argument is None where there is none."""
    for _ in range(OPCODES):
        opcode = pickletools.code2op.get(chr(cursor.read(1)[0]))
        if opcode is None:
            raise ValueError(f"byte {cursor.position:,} is no opcode")
        yield opcode.name, None if opcode.arg is None else argument_of(opcode, cursor)
    raise ValueError(f"it has more than {OPCODES:,} opcodes")


def argument_of(opcode, cursor):
    """As pickletools reads it, but for long bytes, which are not copied, and Python 2's strings."""
    kind, size = opcode.arg.name[:-1], opcode.arg.name[-1]  # such as "bytes" and "4"
    if kind in ENCODINGS:
        n = int.from_bytes(cursor.read(int(size)), "little")
        if ENCODINGS[kind]:
            return cursor.read(n).decode(ENCODINGS[kind])
        return cursor.read(n) if n < MAP_FROM else cursor.slice(n)
    if opcode.name == "STRING":
        quoted = cursor.readline().strip()
        return codecs.escape_decode(quoted[1:-1])[0].decode("latin1")
    argument = opcode.arg.reader(cursor)
    if isinstance(argument, int) and abs(argument) >= 1 << 64:
        raise ValueError("it holds an integer of more than 64 bits")
    if isinstance(argument, str):
        argument.encode("utf-8")  # refuses half a surrogate pair
    return argument


@dataclass(eq=False, slots=True)
class Call:
    """A call that a pickle asks for, written down and not made: function(*args), then its state."""

    function: str
    args: Any = None
    state: Any = None
    made: Any = None  # what `Unfolding` makes of it, once
    price: int = 0


def parse(cursor):
    """What the pickle holds, in dicts, lists, tuples, text, bytes, numbers and `Call`s."""
    stack, marks, memo = [], [], {}

    def since_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for name, argument in opcodes(cursor):
        if len(stack) > STACK:
            raise ValueError(f"it has {STACK:,} values that belong to nothing")
        match name:
            case _ if name in LITERALS:
                stack.append(argument)
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if not 0 <= argument < OPCODES:  # large integers can be chosen to collide
                    raise ValueError("it numbers its values in no sensible way")
                memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in memo:
                    raise ValueError("it refers to a value that it does not hold")
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST":
                stack.append(since_mark())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "DICT":
                stack.append(store({}, since_mark()))
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else since_mark()
                extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else since_mark()
                store(stack[-1], items)
            case "GLOBAL":
                stack.append(named(argument))
            case "STACK_GLOBAL":
                what, module = stack.pop(), stack.pop()
                if not isinstance(what, str) or not isinstance(module, str):
                    raise TypeError("it names what to import by something that is no text")
                stack.append(named(f"{module} {what}"))
            case "REDUCE":
                args, function = stack.pop(), stack.pop()
                if not isinstance(function, Call) or function.args is not None:
                    raise TypeError("it calls what is no function: nothing was run")
                stack.append(Call(function.function, args))
            case "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], Call):
                    raise TypeError("it gives a state to what has none: nothing was run")
                stack[-1].state = state
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case _:
                raise ValueError(f"it asks for {name}, which no data need: nothing was run")


def named(name):
    """The function that "module name" stands for, if data may name it."""
    known = name.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
    if known not in NAMES:
        name = printable(name.replace(" ", "."))
        raise ValueError(f"it asks for {name}, which no data need: nothing was run")
    return Call(NAMES[known])


def extend(target, items):
    if not isinstance(target, list):
        raise TypeError("it appends to what is no list")
    target.extend(items)


def store(target, items):
    """The dict `target` with [key, value, key, value, ...]; only text is a key."""
    if not isinstance(target, dict):
        raise TypeError("it stores under a key in what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, Call):  # how protocols 0-2 spell bytes
            key = key.args[0] if key.function == "encode" and key.args else key
        if not isinstance(key, str | bytes):
            raise TypeError("it has a key that is not text")
        target[key] = value
    return target


class Unfolding:
    """Plain values of what `parse` found. All that is used is paid for from `budget`.

    A value costs 1, and 1 more for each 8 bytes that it has, whenever it is met. So a value that
    is spelled once and used everywhere ends the budget, and an array costs less than its bytes.
    """

    def __init__(self, budget):
        self.left = budget

    def pay(self, price):
        self.left -= price
        if self.left < 0:
            raise ValueError("it would unfold to far more than the file has bytes")

    def value(self, node):
        if isinstance(node, str | bytes | memoryview):
            self.pay(1 + len(node) // 8)
            return node
        self.pay(1)
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if isinstance(node, tuple):
            return tuple([self.value(item) for item in node])
        if isinstance(node, dict):
            return self.with_text_keys(node)
        if isinstance(node, Call):
            return self.result(node)
        return node

    def with_text_keys(self, node):
        made = {}
        for key, item in node.items():
            text = self.value(key)
            text = text.decode("utf-8") if isinstance(text, bytes) else text
            if text in made:
                raise ValueError(f"it has the key {text} twice, as text and as bytes")
            made[text] = self.value(item)
        return made

    def result(self, call):
        """What a call stands for. An array is made once, and paid for as often as it is used."""
        if call.made is None:
            before = self.left
            call.made = self.evaluate(call)
            call.price = before - self.left
        else:
            self.pay(call.price)
        return call.made

    def evaluate(self, call):
        if call.function == "array":
            _, shape, dtype, fortran, raw = self.value(call.state)
            return self.array(raw, dtype, shape, "F" if fortran else "C")
        match call.function, self.value(call.args):
            case "array of bytes", (raw, dtype, shape, ("C" | "F") as order):
                return self.array(raw, dtype, shape, order)
            case "scalar", (dtype, bytes() | str() as raw):
                return self.array(raw, dtype, (), "C")[()]
            case "encode", (str() as text, "latin1"):
                return text.encode("latin1")
            case "bytes", ():
                return b""
            case "dtype", (str() as kind, *_):
                return data_type(kind, self.value(call.state))
        raise ValueError(f"it uses numpy's {call.function} for neither numbers nor text")

    def array(self, raw, dtype, shape, order):
        """An array over `raw`, not copied; an array of objects takes its items from a list alone."""
        if not isinstance(dtype, np.dtype) or not isinstance(shape, tuple) or len(shape) > 4:
            raise ValueError("it has an array without type or shape")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("it has an array whose shape is not of integers")
        self.pay(math.prod(max(n, 1) for n in shape) * dtype.itemsize // 8)  # zeros cost, too
        n = math.prod(shape)
        if dtype == object:
            if not isinstance(raw, list) or len(raw) != n:
                raise ValueError(f"it has an array of {n:,} objects without as many values")
            items = np.empty(n, object)
            for i, item in enumerate(raw):
                items[i] = item
            return items.reshape(shape)  # listed in C order, whatever the array's
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(raw, bytes | memoryview) or len(raw) != n * dtype.itemsize:
            raise ValueError(f"it has an array of {n:,} values and not the bytes for them")
        made = np.ndarray(shape, dtype, raw, order=order)
        if dtype.kind == "U":
            check_unicode(made)
        return made


def data_type(kind, state):
    """numpy's dtype of "f4" and of a state that has the byte order second; no fields, no dates.

    Both go to numpy one letter at a time: "O,i1" would be a struct with pointers.
    """
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
    if not re.fullmatch(r"[biufUSO][1-9][0-9]{0,6}", kind) or order not in ("<", ">", "=", "|"):
        raise ValueError("it has an array of neither numbers nor text")
    return np.dtype(order + kind)


def check_unicode(x):
    """Refuses code points that do not exist, of which numpy makes strings that crash others."""
    codes = np.ndarray((x.size, x.itemsize // 4), x.dtype.byteorder + "u4", x.tobytes())
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise ValueError("it has text that is no Unicode")
