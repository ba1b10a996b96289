"""What a file says of objects that are neither tensor, container nor number."""

from dataclasses import dataclass
from typing import Any

from chemeleon_jax.errors import UserError


class CheckpointError(UserError):
    """A file that is no checkpoint: damaged, hostile or of another kind."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function."""

    name: str

    def __repr__(self):
        return f"<{self.name}>"


@dataclass(slots=True, eq=False)
class Record:
    """What a file says of an object of any class: never the object itself."""

    cls: Any  # Global, or a Record that the file calls
    args: Any  # of the constructor
    state: Any = None  # what __setstate__ would get
    items: list | None = None  # appended or added
    pairs: dict | None = None  # set by key

    @property
    def name(self) -> str:
        """Full name of the class, for example 'torch.nn.modules.linear.Linear'."""
        return self.cls.name if isinstance(self.cls, Global) else "?"

    def get(self, key: str, default: Any = None) -> Any:
        """An attribute, from the state (a dict, or a pair of dict and slots)."""
        states = self.state if isinstance(self.state, tuple) else (self.state,)
        for state in states:
            if isinstance(state, dict) and key in state:
                return state[key]
        return default

    def __repr__(self):
        return f"<record of {self.name}>"


# The standard library's harmless data types. Any other name from the standard library
# (os.system, builtins.eval, ...) has no business in a checkpoint: it could not run here
# but shows that the file is hostile.
DATA_TYPES = {
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "functools": {"partial"},
    "pathlib": None,
    "pathlib._local": None,
    "typing": None,
    "datetime": None,
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "uuid": {"UUID"},
    "argparse": {"Namespace"},
    "types": {"SimpleNamespace"},
    "copyreg": {"_reconstructor"},
    "_codecs": {"encode"},
    "re": {"_compile"},
    "builtins": {"set", "frozenset", "dict", "list", "tuple", "object", "int", "float"}
    | {"bool", "str", "bytes", "bytearray", "complex", "slice", "range", "NoneType"},
}
