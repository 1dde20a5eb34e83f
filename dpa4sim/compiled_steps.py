"""The engine's own work in a step as a few loops, kept on disk from one process to the next.

A step of relaxation or dynamics is a function of records, a question to the model, and a second
function of records.  For a model that was loaded with compile=True both are compiled, once for
each kind of processor and each make of the records (with charges or without, ...), for any number
of atoms and systems: no batch compiles anything again.  Numbers among the settings are inputs, too.

A compiled function reads nothing back from the device, and CUDA graphs can record it.  Its file is
bound to the source code of this package, and lies beside the networks of `compiled.py`.  Where
there is no compiler the functions are called as they are, after a word on stderr.
"""

from __future__ import annotations

import hashlib
import json
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache
from math import isinf
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dpa4sim.compiled import cache_folder, one_at_a_time, package, processor
from dpa4sim.pool.pack import axis_of

SIZES = {"system": 997, "atom": 8009, "row": 10003}
"""Length of each axis in the trace, on which nothing depends; the batch at hand does not matter."""


class Call(Protocol):
    """How a function of records is called."""

    def __call__[T](self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns."""


def fused(model: Any) -> Call:
    """How a model's steps call their functions: compiled if the model is."""
    return by_loop if is_compiled(model) else plainly


def is_compiled(model: Any) -> bool:
    """Whether it was loaded with compile=True; for a sum or an ensemble, whether a part was."""
    if getattr(model, "network", None) is not None:
        return True
    return any(is_compiled(part) for part in getattr(model, "parts", ()))


def plainly[T](function: Callable[..., T], *arguments: Any) -> T:
    """Call it as it is."""
    return function(*arguments)


def by_loop[T](function: Callable[..., T], *arguments: Any) -> T:
    """The same by the compiled function; by the function itself where that cannot be made.

    Args:
        function: of a module, without a state; it changes nothing in place.
        arguments: packed records, the first of them with a tensor, and what else is hashable.
    """
    leaves: list[Any] = []
    known = tuple([_known(argument, leaves) for argument in arguments])
    device = leaves[0].device
    make = (function, device, known)
    if make not in _LOOPS:
        _LOOPS[make] = _open(make, arguments, leaves)
    loop = _LOOPS[make]
    if loop is None:
        return function(*arguments)
    inputs = [_input(leaf, device) for leaf in leaves]
    outputs = loop.run(inputs)
    ends = [outputs[-1 - k] if k < 0 else _end(leaves[k], inputs[k]) for k in loop.source]
    record = _put_together(loop.record, iter(ends))
    _remember(record, loop.known, ends)
    return record


@dataclass(frozen=True)
class _Loop:
    """A compiled function.

    Args:
        run: contiguous tensors -> contiguous tensors.
        record: what the function returns, with leaves that mean nothing.
        known: of it, see `_take_apart`.
        source: where each of its leaves comes from: input k, or output -1 - k.
    """

    run: Callable[[list[Tensor]], list[Tensor]]
    record: Any
    known: Any
    source: tuple[int, ...]


_LOOPS: dict[Any, _Loop | None] = {}
"""What has been opened, by function and make of its arguments; None where that failed."""

_TAKEN_APART: dict[int, tuple[weakref.ref[Any], Any, list[Any]]] = {}
"""What is known of the records that compiled functions made, which often are the next arguments."""


def _known(argument: Any, leaves: list[Any]) -> Any:
    """As `_take_apart`, and at once for what a compiled function returned."""
    made = _TAKEN_APART.get(id(argument))
    if made is None or made[0]() is not argument:
        return _take_apart(argument, leaves)
    leaves.extend(made[2])
    return made[1]


def _remember(record: Any, known: Any, leaves: list[Any]) -> None:
    name = id(record)
    gone = weakref.ref(record, lambda _: _TAKEN_APART.pop(name, None))
    _TAKEN_APART[name] = (gone, known, leaves)


def _take_apart(value: Any, leaves: list[Any]) -> Any:
    """Append the tensors and numbers of a record; what else there is to know of it, hashable.

    An infinite number stands for no limit: it is known, as everything is that is no record.
    """
    if isinstance(value, Tensor):
        leaves.append(value)
        return value.dtype, value.shape[1:]
    if not is_dataclass(value):
        return value
    known: list[Any] = [type(value)]
    for part in vars(value).values():
        if _is_number(part):
            leaves.append(part)
            known.append(type(part))
        else:
            known.append(None if part is None else _take_apart(part, leaves))
    return tuple(known)


def _put_together(value: Any, leaves: Iterator[Any]) -> Any:
    """The same record with other leaves, in the order of `_take_apart`."""
    if not is_dataclass(value):
        return value
    record: Any = object.__new__(type(value))  # a frozen one would set its fields one by one
    parts = record.__dict__
    for name, part in vars(value).items():
        is_leaf = isinstance(part, Tensor) or _is_number(part)
        parts[name] = next(leaves) if is_leaf else _put_together(part, leaves)
    return record


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and not isinf(value))


def _input(leaf: Any, device: torch.device) -> Tensor:
    if isinstance(leaf, Tensor):
        return leaf if leaf.is_contiguous() else leaf.contiguous()
    return _number(leaf, device)


def _end(leaf: Any, taken: Tensor) -> Any:
    return taken if isinstance(leaf, Tensor) else leaf


@cache
def _number(value: float, device: torch.device) -> Tensor:
    dtype = torch.float64 if isinstance(value, float) else torch.int64
    return torch.tensor(value, dtype=dtype, device=device)


def _open(make: tuple[Any, ...], arguments: Sequence[Any], leaves: Sequence[Any]) -> _Loop | None:
    """The compiled function for arguments of this make, from the disk or compiled now."""
    function, device, known = make
    examples = [example for value in arguments for example in _examples(value, device)]
    path = cache_folder() / f"{_name_of(function, device, known)}.pt2"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path):
            if not path.exists():
                _make(function, arguments, examples, path)
        opened = torch._inductor.aoti_load_package(str(path))
        source = json.loads(opened.get_metadata()["dpa4sim"])["source"]
    except Exception as error:  # whatever a compiler may raise: the work goes on without
        why = str(error).strip().splitlines() or [type(error).__name__]
        print(f"steps run uncompiled: {why[0]}", file=sys.stderr, flush=True)
        return None
    nothing = iter([_empty(leaf) for leaf in leaves])
    record = function(*(_put_together(value, nothing) for value in arguments))
    return _Loop(opened.loader.run, record, _take_apart(record, []), tuple(source))


def _empty(leaf: Any) -> Any:
    """No rows; a number is a number."""
    is_rows = isinstance(leaf, Tensor) and leaf.ndim > 0
    return leaf.new_zeros(0, *leaf.shape[1:]) if is_rows else leaf


def _make(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    examples: Sequence[tuple[Tensor, str]],
    path: Path,
) -> None:
    """Trace the function with the lengths of the axes as symbols, then compile."""
    device = examples[0][0].device.type
    name = _title(function)
    print(
        f"compiling steps ({name}) for this {device}, once, about a minute: {path}",
        file=sys.stderr,
        flush=True,
    )
    source: list[int] = []
    sizes = {axis: torch.export.Dim(f"n_{axis}", min=0) for axis in SIZES}
    shapes = tuple({0: sizes[axis]} if axis else None for _, axis in examples)
    package(
        _Graph(function, arguments, source),
        tuple(value for value, _ in examples),
        (shapes,),
        path,
        lambda: {"dpa4sim": json.dumps({"source": source})},
    )


class _Graph(torch.nn.Module):
    """A function of records as one of tensors, which returns what it did not take.

    Args:
        source: is filled by the trace, see `_Loop`.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: Sequence[Any], source: list[int]
    ) -> None:
        super().__init__()

        def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            pieces = [value.detach() for value in inputs]  # each a thing of its own
            rest, ends = iter(pieces), list[Tensor]()
            _take_apart(function(*(_put_together(value, rest) for value in arguments)), ends)
            place = {id(piece): k for k, piece in enumerate(pieces)}
            fresh: list[Tensor] = []
            for end in ends:
                if id(end) not in place:
                    place[id(end)] = -1 - len(fresh)
                    fresh.append(end)
            source[:] = [place[id(end)] for end in ends]
            return tuple(value.contiguous() for value in fresh)

        self.run = run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The new tensors of the result."""
        return self.run(inputs)


def _examples(value: Any, device: torch.device) -> Iterator[tuple[Tensor, str]]:
    """A tensor in place of each leaf of a record, and its axis."""
    for name, part in vars(value).items() if is_dataclass(value) else ():
        if _is_number(part):
            yield _number(part, device), ""
        elif isinstance(part, Tensor):
            axis = axis_of(type(value), name) if part.ndim else ""
            size = (SIZES[axis], *part.shape[1:]) if axis else ()
            yield torch.zeros(size, dtype=part.dtype, device=device), axis
        else:
            yield from _examples(part, device)


def _name_of(function: Callable[..., Any], device: torch.device, known: Any) -> str:
    """Equal for what can use the same file: code, make of the arguments, processor, versions."""
    versions = f"{_sources()} {torch.__version__} {processor(device)}"
    what = f"{_word(function)} {_word(known)} {versions}"
    return f"step-{_title(function)}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def _title(function: Callable[..., Any]) -> str:
    return f"{function.__module__.rpartition('.')[2]}-{function.__name__.strip('_')}"


def _word(known: Any) -> str:
    """The same in every process."""
    if type(known) is tuple:
        return f"({', '.join(map(_word, known))})"
    return f"{known.__module__}.{known.__qualname__}" if callable(known) else repr(known)


@cache
def _sources() -> str:
    """Digest of the code that may be compiled."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for folder in (".", "pool", "relax", "simulate"):
        for path in sorted((root / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
