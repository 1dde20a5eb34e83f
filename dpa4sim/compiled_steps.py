"""The engine's own work in a step as a few loops, kept on disk from one process to the next.

A step of relaxation or dynamics is a function of records, the model, and another function.  For a
model that was loaded with compile=True each of the two functions is compiled once for each kind
of processor and each make of its records (with charges or without, ...), for any number of atoms
and systems: no batch compiles anything again.  Settings that are numbers are inputs, too.

A compiled function reads nothing back from the device, and CUDA graphs can record it.  A file is
bound to the source code of this package: it lies beside the networks of `compiled.py`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from math import isinf
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dpa4sim.compiled import cache_folder, one_at_a_time
from dpa4sim.pool.pack import axis_of

SIZES = {"system": 997, "atom": 8009, "row": 10003}
"""Rows of each axis in the trace; nothing depends on them, and the batch at hand does not matter."""


class Call(Protocol):
    """How a function of records is called."""

    def __call__[T](self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns."""


def plainly[T](function: Callable[..., T], *arguments: Any) -> T:
    """Call it as it is."""
    return function(*arguments)


def fused(model: Any) -> Call:
    """How a model's steps call their functions: compiled if the model is."""
    return _compiled if is_compiled(model) else plainly


def is_compiled(model: Any) -> bool:
    """Whether it was loaded with compile=True; for a sum or an ensemble, whether a part was."""
    if getattr(model, "network", None) is not None:
        return True
    return any(is_compiled(part) for part in getattr(model, "parts", ()))


@dataclass(frozen=True)
class _Loop:
    """A compiled function.

    Args:
        run: contiguous tensors -> contiguous tensors.
        record: what the function returns, with tensors that mean nothing.
        source: where each of its tensors comes from: input k, or output -1 - k.
    """

    run: Callable[[list[Tensor]], list[Tensor]]
    record: Any
    source: tuple[int, ...]


def _compiled[T](function: Callable[..., T], *arguments: Any) -> T:
    """The same by the compiled function; by the function itself where that cannot be made."""
    leaves: list[Any] = []
    known = tuple(_take_apart(argument, leaves) for argument in arguments)
    loop = _loop(function, known, leaves, arguments)
    if loop is None:
        return function(*arguments)
    device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
    inputs = [_inward(leaf, device) for leaf in leaves]
    outputs = loop.run(inputs)
    found = (
        _outward(outputs[-1 - k])
        if k < 0
        else _outward(inputs[k])
        if isinstance(leaves[k], Tensor)
        else leaves[k]
        for k in loop.source
    )
    return _put_together(loop.record, found)


_LOOPS: dict[Any, _Loop | None] = {}


def _loop(
    function: Callable[..., Any], known: Any, leaves: list[Any], arguments: tuple[Any, ...]
) -> _Loop | None:
    """The compiled function for arguments of this make, from the disk or made now.

    Args:
        known: of the arguments, see `_take_apart`.
        leaves: their tensors and numbers.
    """
    device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
    make = (function, known, device)
    if make not in _LOOPS:
        inputs = iter([_inward(leaf, device) for leaf in leaves])
        pieces = map(_outward, inputs)
        record = function(*(_put_together(argument, pieces) for argument in arguments))
        path = cache_folder() / f"{_name_of(function, known, device)}.pt2"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(path):
                if not path.exists():
                    _make(function, arguments, _examples(known, device), path)
            package = torch._inductor.aoti_load_package(str(path))
            source = json.loads(package.get_metadata()["dpa4sim"])["source"]
            _LOOPS[make] = _Loop(package.loader.run, record, tuple(source))
        except (OSError, RuntimeError) as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            print(f"steps are not compiled: {why[0]}", file=sys.stderr, flush=True)
            _LOOPS[make] = None
    return _LOOPS[make]


def _make(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    examples: list[tuple[Tensor, str]],
    path: Path,
) -> None:
    """Trace the function with the numbers of atoms and systems as symbols, then compile."""
    print(
        f"compiling {function.__qualname__.strip('_')} for steps on this "
        f"{examples[0][0].device.type}, once, about a minute: {path}",
        file=sys.stderr,
        flush=True,
    )
    source: list[int] = []

    class Graph(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            pieces = [_outward(value) for value in inputs]
            rest = iter(pieces)
            result = function(*(_put_together(argument, rest) for argument in arguments))
            ends: list[Any] = []
            _take_apart(result, ends)
            place = {id(piece): k for k, piece in enumerate(pieces)}
            fresh: list[Tensor] = []
            source.clear()
            for end in ends:
                if id(end) not in place:
                    place[id(end)] = -1 - len(fresh)
                    fresh.append(end)
                source.append(place[id(end)])
            return tuple(_inward(value, value.device) for value in fresh)

    sizes = {axis: torch.export.Dim(f"n_{axis}", min=0) for axis in SIZES}
    shapes = tuple({value.ndim - 1 if _turns(value) else 0: sizes[axis]} if axis else None for value, axis in examples)
    partial = path.with_name(f".{path.stem}.partial.pt2")
    try:
        with warnings.catch_warnings(action="ignore"):  # of the compiler, about itself
            program = torch.export.export(
                Graph(),
                tuple(value for value, _ in examples),
                dynamic_shapes=(shapes,),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(partial),
                inductor_configs={
                    "aot_inductor.metadata": {"dpa4sim": json.dumps({"source": source})},
                    "cpp.threads": 1,  # with more, sums have no order
                },
            )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _take_apart(value: Any, leaves: list[Any], axis: str = "") -> Any:
    """Append the tensors and numbers of a record; what else there is to know of it, hashable.

    Numbers are those of settings.  An infinite one stands for no limit, and is known.
    """
    if isinstance(value, Tensor):
        leaves.append(value)
        return axis, value.dtype, tuple(value.shape[1:])
    if not is_dataclass(value):
        return value
    known: list[Any] = [type(value)]
    for name in _names(type(value)):
        part = getattr(value, name)
        if isinstance(part, Tensor):
            known.append(_take_apart(part, leaves, axis_of(type(value), name) if part.ndim else ""))
        elif _is_number(part):
            leaves.append(part)
            known.append(("", torch.int64 if type(part) is int else torch.float64, ()))
        else:
            known.append(_take_apart(part, leaves))
    return tuple(known)


def _put_together(value: Any, leaves: Iterator[Any]) -> Any:
    """The same record with other leaves, in the order of `_take_apart`."""
    if isinstance(value, Tensor):
        return next(leaves)
    if not is_dataclass(value):
        return value
    parts = {}
    for name in _names(type(value)):
        part = getattr(value, name)
        parts[name] = next(leaves) if _is_number(part) else _put_together(part, leaves)
    return type(value)(**parts)


def _examples(known: Any, device: torch.device) -> list[tuple[Tensor, str]]:
    """A tensor for each leaf, and its axis."""
    if isinstance(known, tuple) and len(known) == 3 and isinstance(known[1], torch.dtype):
        axis, dtype, shape = known
        size = (SIZES[axis], *shape) if axis else shape
        return [(_inward(torch.zeros(size, dtype=dtype, device=device), device), axis)]
    if isinstance(known, tuple):
        return [example for part in known for example in _examples(part, device)]
    return []


def _inward(leaf: Any, device: torch.device) -> Tensor:
    """A leaf as a compiled function takes it: contiguous, the first axis innermost."""
    if not isinstance(leaf, Tensor):
        return _number(leaf, device)
    return (leaf.movedim(0, -1) if _turns(leaf) else leaf).contiguous()


def _outward(tensor: Tensor) -> Tensor:
    """A new tensor with its first axis in front again."""
    return tensor.movedim(-1, 0) if _turns(tensor) else tensor.detach()


def _turns(tensor: Tensor) -> bool:
    return tensor.ndim > 1


def _is_number(value: Any) -> bool:
    return type(value) is int or (type(value) is float and not isinf(value))


@cache
def _number(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float64 if type(value) is float else torch.int64, device=device)


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _name_of(function: Callable[..., Any], known: Any, device: torch.device) -> str:
    """Equal for what can use the same file: code, make of the arguments, processor, versions."""
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = function.__qualname__.strip("_")
    what = f"{_word(function)} {_word(known)} {_sources()} {torch.__version__} {kind}"
    return f"step-{name}-{hashlib.sha256(what.encode()).hexdigest()[:16]}"


def _word(known: Any) -> str:
    """The same in every process."""
    if isinstance(known, tuple):
        return f"({', '.join(map(_word, known))})"
    if callable(known):
        return f"{known.__module__}.{known.__qualname__}"
    return repr(known)


@cache
def _sources() -> str:
    """Digest of the code that may be compiled."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for folder in (".", "relax", "simulate", "pool"):
        for path in sorted((root / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
