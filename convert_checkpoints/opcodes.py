"""A pickle machine that cannot run anything.

Pickle is a small stack language. Python's own reader imports what a file names and
calls it; this one has neither imports nor calls: a global becomes a `Global` (a name),
and whatever would call or build becomes a `Record` of the arguments. Opcodes are listed
in CPython's `pickletools`.

The work is bounded: every opcode, and every element that an opcode copies, is paid out
of one budget, and every read stays inside the given bytes.
"""

import struct
import sys
from collections.abc import Callable
from typing import Any

from convert_checkpoints.records import DATA_TYPES, CheckpointError, Global, Record

MAX_OPCODES = 2_000_000  # a paper-size checkpoint needs about 50,000
TUPLE_KEY_COST = 100  # opcodes; see check_key


PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
MARK = object()


def load(
    data: bytes | memoryview,
    *,
    functions: dict[str, Callable] | None = None,
    persistent: Callable[[Any], Any] | None = None,
    max_opcodes: int = MAX_OPCODES,
) -> Any:
    """Read one pickle.

    Args:
      data: the pickle.
      functions: what to do with a call of the named function: `f(args) -> value`. These
        are the only functions that run, and they are this project's own.
      persistent: value of a persistent id (storages, in a torch file).
      max_opcodes: budget.

    Raises:
      CheckpointError: damaged, hostile, over budget.
    """
    machine = _Machine(data, functions or {}, persistent, max_opcodes)
    try:
        return machine.run()
    except CheckpointError:
        raise
    except Exception:  # whatever it is, the bytes are to blame
        raise machine.error("damaged pickle") from None


class _Machine:
    """The state of one reading: position, stack, memo, budget."""

    def __init__(self, data, functions, persistent, max_opcodes):
        self.data = memoryview(data)
        self.functions = BUILTINS | functions
        self.persistent = persistent
        self.budget = max_opcodes
        self.at = 0
        self.stack: list = []
        self.memo: dict[int, Any] = {}

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{what} (at byte {self.at} of {len(self.data)})")

    def run(self) -> Any:
        while True:
            self.spend(1)
            opcode = self.data[self.at]
            self.at += 1
            if opcode == STOP:
                if len(self.stack) != 1:
                    raise self.error("damaged pickle")
                return self.pop()
            handler = OPCODES.get(opcode)
            if handler is None:
                raise self.error(f"unknown pickle opcode {opcode:#04x}")
            handler(self)

    def spend(self, cost: int):
        self.budget -= max(cost, 0)
        if self.budget < 0:
            raise self.error("pickle is too long for a checkpoint")

    def take(self, size: int) -> memoryview:
        if size < 0 or self.at + size > len(self.data):
            raise self.error("pickle is cut off, or lies about a size")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self, encoding: str = "utf-8") -> str:
        # The text opcodes of protocol 0: short in practice, so a cap keeps this linear.
        chunk = bytes(self.data[self.at : self.at + 4096])
        end = chunk.find(b"\n")
        if end < 0:
            raise self.error("damaged pickle")
        self.at += end + 1
        return chunk[:end].decode(encoding)

    def push(self, value):
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise self.error("damaged pickle")
        return value

    def top(self) -> Any:
        if self.stack[-1] is MARK:
            raise self.error("damaged pickle")
        return self.stack[-1]

    def pop_mark(self) -> list:
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise self.error("damaged pickle")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def find_global(self, module: str, name: str) -> Global:
        module = PYTHON_2.get(module, module)
        if module.partition(".")[0] in sys.stdlib_module_names:
            allowed = DATA_TYPES.get(module, set())
            if allowed is not None and name not in allowed:
                raise self.error(
                    f"hostile pickle: it names {module[:60]}.{name[:60]}, which is no "
                    "data type; nothing was run"
                )
        return Global(f"{module}.{name}")

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple) or not isinstance(function, Global | Record):
            raise self.error("damaged pickle")
        if isinstance(function, Global) and function.name in self.functions:
            copied = (
                x for x in args if isinstance(x, list | tuple | dict | str | bytes)
            )
            self.spend(sum(map(len, copied)))
            return self.functions[function.name](args)
        return Record(function, args)

    def set_items(self, pairs: list):
        target = self.top()
        if isinstance(target, Record):
            target.pairs = {} if target.pairs is None else target.pairs
            target = target.pairs
        if not isinstance(target, dict):
            raise self.error("damaged pickle")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            parts = key if isinstance(key, tuple) else (key,)
            self.spend(TUPLE_KEY_COST * (len(parts) - 1))
            for part in parts:
                check_key(part)
            target[key] = value

    def append(self, values: list):
        target = self.top()
        if isinstance(target, Record):
            target.items = [] if target.items is None else target.items
            target = target.items
        if not isinstance(target, list):
            raise self.error("damaged pickle")
        target.extend(values)

    def build(self):
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # OrderedDict's attributes: of no interest
            raise self.error("damaged pickle")

    def persistent_id(self, value: Any):
        if self.persistent is None:
            raise self.error("pickle refers to data outside itself")
        self.push(self.persistent(value))


def check_key(key: Any) -> Any:
    """A key whose hash is cheap, cannot overflow the stack, and cannot be aimed.

    Python's hashes of nested tuples recurse without a limit, and those of tuples and
    large integers are easily made to collide, which turns a dictionary into a trap.
    """
    small = isinstance(key, int) and abs(key) < 2**60
    if not small and not isinstance(key, str | bytes | float | Global | Record | None):
        raise CheckpointError("damaged pickle: a dictionary key of an unexpected type")
    return key


def _mapping(args: tuple) -> dict:
    """Dicts and OrderedDicts: nothing, a mapping, or a list of pairs."""
    (source,) = args or ((),)
    pairs = source.items() if isinstance(source, dict) else source
    return {check_key(key): value for key, value in pairs}


def _collection(args: tuple) -> Record:
    """Sets: kept as records, because hashing their members is not safe."""
    record = Record(Global("builtins.set"), ())
    record.items = list(*args)
    return record


def _encode(args: tuple) -> bytes:
    """`_codecs.encode`: how protocol 2 writes bytes."""
    text, encoding = args
    if encoding != "latin1":
        raise CheckpointError("damaged pickle: bytes in an unknown encoding")
    return text.encode("latin1")


BUILTINS: dict[str, Callable[[tuple], Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda args: _mapping(args[1:]),
    "builtins.dict": _mapping,
    "builtins.list": lambda args: list(*args),
    "builtins.tuple": lambda args: tuple(*args),
    "builtins.set": _collection,
    "builtins.frozenset": _collection,
    "_codecs.encode": _encode,
}


def _constant(value) -> Callable[[_Machine], None]:
    return lambda m: m.push(value)


def _unpack(code: str) -> Callable[[_Machine], None]:
    size = struct.calcsize(code)
    return lambda m: m.push(struct.unpack(code, m.take(size))[0])


def _counted(size: int, decode: Callable[[memoryview], Any]):
    """Bytes behind their own length, of `size` bytes."""
    return lambda m: m.push(decode(m.take(m.number(size))))


def _utf8(data: memoryview) -> str:
    return str(data, "utf-8", "surrogatepass")


def _latin1(data: memoryview) -> str:  # strings of Python 2
    return str(data, "latin1")


def _long(size: int) -> Callable[[_Machine], None]:
    def handler(m: _Machine):
        length = m.number(size)
        if length > 64:  # random states need 16 bytes
            raise m.error("damaged pickle: an integer of absurd size")
        m.push(int.from_bytes(m.take(length), "little", signed=True))

    return handler


def _tuple(size: int) -> Callable[[_Machine], None]:
    def handler(m: _Machine):
        m.push(tuple([m.pop() for _ in range(size)][::-1]))

    return handler


def _put(index: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
    return lambda m: m.memo.__setitem__(index(m), m.top())


def _get(index: Callable[[_Machine], int]) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.memo[index(m)])


def _reduce(m: _Machine):
    args, function = m.pop(), m.pop()
    m.push(m.call(function, args))


def _new_object_ex(m: _Machine):
    kwargs, args, cls = m.pop(), m.pop(), m.pop()
    m.push(Record(cls, args))
    m.top().state = kwargs


def _instance(m: _Machine):  # INST: protocol 0
    cls = m.find_global(m.line(), m.line())
    m.push(m.call(cls, tuple(m.pop_mark())))


def _object(m: _Machine):  # OBJ
    cls, *args = m.pop_mark()
    m.push(m.call(cls, tuple(args)))


def _stack_global(m: _Machine):
    name, module = m.pop(), m.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise m.error("damaged pickle")
    m.push(m.find_global(module, name))


def _set_one(m: _Machine):
    value, key = m.pop(), m.pop()
    m.set_items([key, value])


def _new_dict(m: _Machine):
    pairs = m.pop_mark()
    m.push({})
    m.set_items(pairs)


def _integer_line(m: _Machine):  # INT: also how protocol 0 writes booleans
    text = m.line()
    m.push(text == "01" if text in ("00", "01") else int(text))


def _pop_any(m: _Machine):
    m.stack.pop()


STOP = ord(".")
OPCODES: dict[int, Callable[[_Machine], Any]] = {
    # scalars
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord("I"): _integer_line,
    ord("L"): lambda m: m.push(int(m.line().rstrip("L"))),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("V"): lambda m: m.push(m.line("raw-unicode-escape")),
    ord("J"): _unpack("<i"),
    ord("K"): _unpack("<B"),
    ord("M"): _unpack("<H"),
    ord("G"): _unpack(">d"),
    0x8A: _long(1),
    0x8B: _long(4),
    # text and bytes
    ord("X"): _counted(4, _utf8),
    0x8C: _counted(1, _utf8),
    0x8D: _counted(8, _utf8),
    ord("B"): _counted(4, bytes),
    ord("C"): _counted(1, bytes),
    0x8E: _counted(8, bytes),
    0x96: _counted(8, bytes),
    ord("T"): _counted(4, _latin1),
    ord("U"): _counted(1, _latin1),
    # containers
    ord("("): _constant(MARK),
    ord(")"): _constant(()),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("]"): lambda m: m.push([]),
    ord("l"): lambda m: m.push(m.pop_mark()),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.pop_mark()),
    ord("}"): lambda m: m.push({}),
    ord("d"): _new_dict,
    ord("s"): _set_one,
    ord("u"): lambda m: m.set_items(m.pop_mark()),
    0x8F: lambda m: m.push(_collection(())),
    0x90: lambda m: m.append(m.pop_mark()),
    0x91: lambda m: m.push(_collection((m.pop_mark(),))),
    # objects
    ord("c"): lambda m: m.push(m.find_global(m.line(), m.line())),
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _reduce,  # NEWOBJ: cls.__new__(cls, *args)
    0x92: _new_object_ex,
    ord("i"): _instance,
    ord("o"): _object,
    ord("b"): lambda m: m.build(),
    ord("Q"): lambda m: m.persistent_id(m.pop()),
    # memo and stack
    ord("q"): _put(lambda m: m.number(1)),
    ord("r"): _put(lambda m: m.number(4)),
    ord("p"): _put(lambda m: int(m.line())),
    0x94: _put(lambda m: len(m.memo)),
    ord("h"): _get(lambda m: m.number(1)),
    ord("j"): _get(lambda m: m.number(4)),
    ord("g"): _get(lambda m: int(m.line())),
    ord("0"): _pop_any,
    ord("1"): lambda m: m.pop_mark(),
    ord("2"): lambda m: m.push(m.top()),
    # framing
    0x80: lambda m: m.take(1),
    0x95: lambda m: m.take(8),
}
