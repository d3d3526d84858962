"""What a repository says of its quantized weights, read so that nothing in it is silently ignored. No torch here.

Each method has a file of its own (gptq.py, awq.py, ...) with one function, `read`: settings and headers in, Quantization out. Which matrices are packed,
the tensors themselves say; how, the settings say; nothing is guessed.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pellucid.errors import BadConfig, MisshapenTensor, MissingTensors, UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.weights.packed_rows import PackedWeight

FLOATS = ("F32", "BF16", "F16")  # what scales are stored in
# Tensors beside the matrices that nothing here multiplies with.
_ROUNDED, _CACHE = "scales of activations, which are rounded in another way here or not at all", "scales of a cache in eight bits, which is not kept so here"
_BESIDE = {"input_scale": _ROUNDED, "input_zero_point": _ROUNDED, "input_scale_ub": _ROUNDED, "activation_scale": _ROUNDED, "output_scale": _ROUNDED,
           "output_zero_point": _ROUNDED, **dict.fromkeys(("q_scale", "k_scale", "v_scale", "kv_scale", "k_zero_point", "v_zero_point"), _CACHE)}


class Described(Protocol):
    """What a header says of a tensor."""

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


Stored = Mapping[str, Described]
Peek = Callable[[str], bytes]  # a small tensor's bytes, by its name


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One matrix that the files hold in several tensors.

    format: what reports call its numbers, such as int4. parts: role -> the name of a tensor in the files. shape: (rows, columns) of what they make, or
    (experts, rows, columns), whichever way round the plain files of the same model have it.
    build: the tensors by role -> the packed matrix. Raises MisshapenTensor or UnsupportedModel for what only the data shows.
    """

    format: str
    parts: Mapping[str, str]
    shape: tuple[int, ...]
    build: Callable[[Mapping[str, Tensor]], PackedWeight]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How the matrices of a repository are packed.

    shown: the same as `facts`, for people. matrices: name of what is made -> how. biases: those which some quantizers add, of zeros.
    left_out: name in the files -> why nothing here reads it. notes: what to say about running it.
    """

    method: str
    shown: str
    facts: Mapping[str, Any]
    matrices: Mapping[str, Packed]
    biases: Collection[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Settings:
    """A quantization_config whose every key must be taken, expected, or known to be inert; null counts as absent. `where` is what messages call it."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw, self.where = raw, where
        self._read: set[str] = set()
        self._parts: list[Settings] = []

    def __call__(self, *names: str, default: Any = ...) -> Any:
        """Value of the first of `names` that is present. Raises BadConfig when none is and there is no default."""
        self._read |= set(names)
        value = next((value for name in names if (value := self.raw.get(name)) is not None), default)
        if value is ...:
            raise BadConfig(f"{self.where} has no {' or '.join(map(repr, names))}, which this method needs. Is the file whole?")
        return value

    def count(self, *names: str, default: Any = ..., among: Collection[int] = ()) -> int:
        """A whole number, one of those that are read where they are named. Raises BadConfig or UnsupportedModel."""
        value = self(*names, default=default)
        if type(value) is not int:
            raise BadConfig(f"{self.where}: {names[0]} is {value!r:.60}, and a whole number was expected")
        if among and value not in among:
            raise UnsupportedModel(f"{self.where} has a setting that is not read: {names[0]}={value} (read: {', '.join(map(str, among))})")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self(name, default=default)
        if not isinstance(value, bool):
            raise BadConfig(f"{self.where}: {name} is {value!r:.60}, and true or false was expected")
        return value

    def choice(self, *names: str, among: Iterable[str], default: Any = ...) -> str:
        """A word, whatever its case. Raises UnsupportedModel for one that is not among those which are read."""
        value, among = self(*names, default=default), tuple(among)
        if not isinstance(value, str) or value.lower() not in among:
            raise UnsupportedModel(f"{self.where} has a setting that is not read: {names[0]}={value!r:.60} (read: {', '.join(map(repr, among))})")
        return value.lower()

    def expect(self, because: str = "", **facts: Any) -> None:
        """States settings that are read in one value only. Raises UnsupportedModel for any other."""
        for name, value in facts.items():
            if (said := self(name, default=value)) != value:
                raise UnsupportedModel(f"{self.where} has a setting that is not read: {name}={said!r:.60} (only {value!r}){because and ': ' + because}")

    def inert(self, why: str, names: str) -> None:
        """Names keys, separated by spaces, that cannot change what is computed here, and why."""
        assert why
        self._read |= set(names.split())

    def part(self, raw: Any, name: str) -> Settings:
        """A nested object, accounted for in the same way."""
        if not isinstance(raw, Mapping):
            raise BadConfig(f"{self.where}: {name} is {raw!r:.60}, and an object was expected")
        self._parts.append(Settings(raw, f"{name} of {self.where}"))
        return self._parts[-1]

    def finish(self) -> None:
        """Raises BadConfig if a key was left over."""
        if left := {key: value for key, value in self.raw.items() if value is not None and key not in self._read}:
            shown = ", ".join(f"{key}={value!r}"[:80] for key, value in sorted(left.items()))
            raise BadConfig(f"{self.where} has {len(left)} key{'s' * (len(left) > 1)} that nobody reads: {shown}. Weights could mean something else than "
                            f"they seem to. What changes nothing for certain may be removed from the file.")
        for part in self._parts:
            part.finish()


def matches(pattern: str, name: str, where: str) -> bool:
    """Whether the name begins with what this regular expression matches. Raises BadConfig for one that is none."""
    try:
        return re.match(pattern, name) is not None
    except (re.error, RecursionError, OverflowError) as e:
        raise BadConfig(f"{where}: {pattern!r:.60} is no regular expression ({e}), and one for the names of modules was expected") from None


def check(stored: Stored, name: str, of: str, shapes: Collection[tuple[int, ...]], dtypes: Collection[str]) -> None:
    """Raises MissingTensors, MisshapenTensor or UnsupportedModel where a part of the matrix `of` is not there or not as it makes it."""
    if name not in stored:
        raise MissingTensors(f"{of} is packed, and {name} is not there. Is a shard missing?")
    if stored[name].shape not in shapes:
        raise MisshapenTensor(f"{name} has shape {stored[name].shape}, and {of} of {stored[of].shape} makes it {' or '.join(map(str, shapes))}")
    if stored[name].dtype not in dtypes:
        raise UnsupportedModel(f"{name} is {stored[name].dtype}, and beside {of} {' or '.join(dtypes)} is read")


def beside(stored: Stored) -> dict[str, str]:
    """Name -> why, of the tensors that say how to round what is not rounded so here."""
    return {name: _BESIDE[last] for name in stored if (last := name.rpartition(".")[2]) in _BESIDE}


def grouped(group: int, n_columns: int, of: str, where: str) -> int:
    """Columns of one scale, -1 being all of them. Raises UnsupportedModel for a number that does not divide them."""
    if group == -1:
        return n_columns
    if group < 1 or n_columns % group:
        raise UnsupportedModel(f"{where} has groups of {group} columns, and {of} has {n_columns}: a number that divides them was expected, or -1 for all")
    return group


def per(group: int | None) -> str:
    """How far a scale reaches, in words."""
    return "a scale for each row" if group == -1 else f"a scale for {group} columns"
