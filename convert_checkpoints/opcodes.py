"""A pickle machine that cannot run anything.

Pickle is a small stack language. Python's own reader imports what a file names and
calls it; this one has neither imports nor calls: a global becomes a `Global` (a name),
and whatever would call or build becomes a `Record` of the arguments. Opcodes and their
arguments are told apart by `pickletools`, which stays inside the given bytes.

The work is bounded: every opcode, and every element that an opcode copies, is paid out
of one budget.
"""

import io
import pickletools
import sys
from collections.abc import Callable
from typing import Any

from convert_checkpoints.records import DATA_TYPES, CheckpointError, Global, Record

MAX_OPCODES = 2_000_000  # a paper-size checkpoint needs about 50,000
MAX_INTEGER_BITS = 512  # random states need 128
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

    A call of a function named in `functions` gives `f(args)`: these are the only ones
    that run, and they are this project's own. `persistent` gives the value of a
    persistent id (storages, in a torch file).

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
        self.file = io.BytesIO(data)
        self.functions = BUILTINS | functions
        self.persistent = persistent
        self.budget = max_opcodes
        self.stack: list = []
        self.memo: dict[int, Any] = {}

    def error(self, what: str) -> CheckpointError:
        size = len(self.file.getbuffer())
        return CheckpointError(f"{what} (at byte {self.file.tell()} of {size})")

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.file):
            self.spend(1)
            if opcode.name in SCALARS:
                if isinstance(argument, int) and (
                    argument.bit_length() > MAX_INTEGER_BITS
                ):
                    raise self.error("damaged pickle: an integer of absurd size")
                self.push(argument)
            elif opcode.name in CONSTANTS:
                self.push(CONSTANTS[opcode.name])
            elif opcode.name in OPCODES:
                OPCODES[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise self.error(f"unknown pickle opcode {opcode.name}")
        (value,) = self.pop(len(self.stack))
        return value

    def expect(self, holds: bool):
        if not holds:
            raise self.error("damaged pickle")

    def spend(self, cost: int):
        self.budget -= cost
        if self.budget < 0:
            raise self.error("pickle is too long for a checkpoint")

    def push(self, value):
        self.stack.append(value)

    def pop(self, count: int) -> list:
        """The last values of the stack, none of them a mark."""
        values = [self.stack.pop() for _ in range(count)][::-1]
        self.expect(all(value is not MARK for value in values))
        return values

    def pop_mark(self) -> list:
        """All values behind the last mark."""
        values = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    def top(self) -> Any:
        self.expect(self.stack[-1] is not MARK)
        return self.stack[-1]

    def find_global(self, module: str, name: str) -> Global:
        self.expect(isinstance(module, str) and isinstance(name, str))
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
        self.expect(isinstance(args, tuple) and isinstance(function, Global | Record))
        if isinstance(function, Global) and function.name in self.functions:
            copied = (
                x for x in args if isinstance(x, list | tuple | dict | str | bytes)
            )
            self.spend(sum(map(len, copied)))
            return self.functions[function.name](args)
        return Record(function, args)

    def call_first(self, values: list) -> Any:
        return self.call(values[0], tuple(values[1:]))

    def set_items(self, pairs: list):
        target = self.top()
        if isinstance(target, Record):
            target.pairs = {} if target.pairs is None else target.pairs
            target = target.pairs
        self.expect(isinstance(target, dict))
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            parts = key if isinstance(key, tuple) else (key,)
            self.spend(TUPLE_KEY_COST * max(len(parts) - 1, 0))
            for part in parts:
                check_key(part)
            target[key] = value

    def append(self, values: list):
        target = self.top()
        if isinstance(target, Record):
            target.items = [] if target.items is None else target.items
            target = target.items
        self.expect(isinstance(target, list))
        target.extend(values)

    def new_dict(self):
        pairs = self.pop_mark()
        self.push({})
        self.set_items(pairs)

    def build(self, state: Any):
        target = self.top()
        if isinstance(target, Record):
            target.state = state
        else:  # OrderedDict's attributes: of no interest
            self.expect(isinstance(target, dict))

    def find_persistent(self, value: Any) -> Any:
        if self.persistent is None:
            raise self.error("pickle refers to data outside itself")
        return self.persistent(value)


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
    return Record(Global("builtins.set"), (), items=list(*args))


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


# Named as in `pickletools`. These push the argument that stands behind them.
SCALARS = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8".split()
)
CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "MARK": MARK,
}
OPCODES: dict[str, Callable[[_Machine, Any], Any]] = {
    "BYTEARRAY8": lambda m, content: m.push(bytes(content)),
    # containers
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "APPEND": lambda m, _: m.append(m.pop(1)),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.new_dict(),
    "SETITEM": lambda m, _: m.set_items(m.pop(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "EMPTY_SET": lambda m, _: m.push(_collection(())),
    "ADDITEMS": lambda m, _: m.append(m.pop_mark()),
    "FROZENSET": lambda m, _: m.push(_collection((m.pop_mark(),))),
    # objects; pickletools joins a module and a name by a space
    "GLOBAL": lambda m, names: m.push(m.find_global(*names.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.push(m.find_global(*m.pop(2))),
    "REDUCE": lambda m, _: m.push(m.call(*m.pop(2))),
    "NEWOBJ": lambda m, _: m.push(m.call(*m.pop(2))),  # cls.__new__(cls, *args)
    "NEWOBJ_EX": lambda m, _: m.push(Record(*m.pop(3))),  # keywords as state
    "INST": lambda m, names: m.push(
        m.call(m.find_global(*names.split(" ", 1)), tuple(m.pop_mark()))
    ),
    "OBJ": lambda m, _: m.push(m.call_first(m.pop_mark())),
    "BUILD": lambda m, _: m.build(*m.pop(1)),
    "BINPERSID": lambda m, _: m.push(m.find_persistent(*m.pop(1))),
    # memo and stack
    "PUT": lambda m, index: m.memo.update({index: m.top()}),
    "BINPUT": lambda m, index: m.memo.update({index: m.top()}),
    "LONG_BINPUT": lambda m, index: m.memo.update({index: m.top()}),
    "MEMOIZE": lambda m, _: m.memo.update({len(m.memo): m.top()}),
    "GET": lambda m, index: m.push(m.memo[index]),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.push(m.top()),
}
