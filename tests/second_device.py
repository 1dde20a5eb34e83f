"""A second device that computes on the processor and refuses what CUDA refuses.

Its tensors say that they are on "second:0" and hold an ordinary tensor.  An operation between them
and ordinary tensors fails as it does between CUDA and the processor (numbers without dimensions and
indices may come from the processor), and so does `numpy()`.  Code that runs here therefore leaves
no constant, index or state behind on the processor.  What it does not show: kernels, streams,
graphs, memory, speed.

It registers a back-end with PyTorch, for good: import it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
_setup_privateuseone_for_python_backend(NAME)
DEVICE, PROCESSOR = torch.device(NAME, 0), torch.device("cpu")

MOVES = ("aten::_to_copy", "aten::copy_")
"""Operations between devices."""

INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations whose indices may be on the processor; they come second."""


class Elsewhere(Tensor):
    """A tensor of the second device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        shape = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), dtype=inner.dtype, device=DEVICE, **shape
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.inner})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class SecondDevice(TorchDispatchMode):
    """While it lasts, `device="second"` makes tensors there."""

    def __enter__(self) -> Any:
        self._before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device=...) moves its data
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(self._before)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation, computed on the processor, its answers where they belong."""
    name = func._schema.name
    given = args[:1] + args[2:] if name in INDEXING else args
    on = check(func, given, kwargs)
    if name in INDEXING and not on:
        check(func, (args[0], *(index[None] for index in args[1] if index is not None)), {})
    if kwargs.get("device") is not None:
        on = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": PROCESSOR}
    seen: dict[int, Elsewhere] = {}

    def inside(value: Any) -> Any:
        if not isinstance(value, Elsewhere):
            return value
        seen[id(value.inner)] = value
        return value.inner

    def outside(value: Any) -> Any:
        if id(value) in seen:  # written into
            return seen[id(value)]
        return Elsewhere(value) if on and type(value) is Tensor else value

    return tree_map(outside, func(*tree_map(inside, args), **tree_map(inside, kwargs)))


def check(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation is on the second device; raises where it is on both."""
    here: list[tuple[int, ...]] = []
    there: list[bool] = []

    def look(value: Any) -> None:
        if isinstance(value, Elsewhere):
            there.append(value.dim() > 0)
        elif isinstance(value, Tensor) and value.dim() > 0:
            here.append(tuple(value.shape))

    tree_map(look, (args, kwargs))
    mixed = here and there and func._schema.name not in MOVES
    if mixed and (any(there) or func._schema.is_mutable):
        raise RuntimeError(f"{func} meets tensors of {DEVICE} and of the processor, {here}")
    return bool(there)


@contextmanager
def second_device() -> Iterator[None]:
    """The device, with the few things on the processor that CUDA has of its own.

    The neighbour search of CUDA is a Warp kernel; safetensors and `torch.save` read CUDA's memory
    themselves.
    """
    from dpa4sim import edges, model_file

    search = edges.search

    def on_processor(positions: Tensor, cell: Tensor, batch: Any, radius: float) -> Any:
        found = search(positions.cpu(), cell.cpu(), batch.to("cpu"), radius)
        parts = (found.center, found.neighbor, found.image)
        return type(found)(*(part.to(positions.device) for part in parts))

    def from_home(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(content: Any, *args: Any, **kwargs: Any) -> Any:
            return write(tree_map(_home, dict(content)), *args, **kwargs)

        return wrapped

    with (
        patch.object(edges, "search", on_processor),
        patch.object(model_file, "save_file", from_home(model_file.save_file)),
        patch.object(torch, "save", from_home(torch.save)),
        SecondDevice(),
    ):
        yield


def _home(value: Any) -> Any:
    return value.detach().cpu() if isinstance(value, Tensor) else value
