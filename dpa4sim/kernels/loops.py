"""Loops over edges that PyTorch's inductor compiles, kept on disk from one process to the next.

A loop is a function that writes into its arguments or returns new tensors, compiled once for each
shape of a network and kind of processor, for any number of edges; `dpa4sim.compiled` says where
the files lie.  Where there is no compiler the kernels call PyTorch, after a word on stderr.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dpa4sim.compiled import cache_folder, one_at_a_time, package, processor

EXAMPLE_EDGES, EXAMPLE_ATOMS = 1009, 307
"""Lengths in the trace, on which nothing depends."""

Run = Callable[[list[Tensor]], Any]
"""What was compiled: a flat list of the tensors of all arguments -> a list of new tensors."""

ONE_LOOP = {
    "max_fusion_size": 1000,
    "realize_acc_reads_threshold": 1 << 20,
    "realize_opcount_threshold": 1 << 20,
    "realize_reads_threshold": 1 << 20,
}
"""Inductor's limits on what may become one loop, lifted."""


@dataclass(frozen=True)
class Loop:
    """A function to compile.

    Args:
        name: in the file's name.
        inputs: tensors and lists of them, with the strides that will come; none shares its memory.
        sizes: of each of them, which axis has which length, as torch.export takes it.
    """

    name: str
    function: Callable[..., Sequence[Tensor]]
    inputs: tuple[Any, ...]
    sizes: tuple[Any, ...]


class Loops(Hashable, Protocol):
    """What loops depend on."""

    def loops(self) -> list[Loop]:
        """The functions and their example inputs."""


@cache
def open_loops(shape: Loops) -> tuple[Run, ...] | None:
    """From the disk or compiled now; None, after a word on stderr, where that is impossible."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tuple([_opened(shape, loop, folder) for loop in shape.loops()])
    except Exception as error:  # whatever a compiler may raise: the work goes on without
        why = str(error).strip().splitlines() or [type(error).__name__]
        print(f"loops over edges run uncompiled: {why[0]}", file=sys.stderr, flush=True)
        return None


def per_edge(n: int, stride: int, dtype: torch.dtype) -> Tensor:
    """An example of columns of rows that are `stride` long."""
    return torch.empty_strided((EXAMPLE_EDGES, n), (stride, 1), dtype=dtype).zero_()


class _Graph(torch.nn.Module):
    def __init__(self, function: Callable[..., Sequence[Tensor]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: list[Tensor] | Tensor) -> tuple[Tensor, ...]:
        """What the function returns."""
        return tuple(self.function(*inputs))


def _opened(shape: Loops, loop: Loop, folder: Path) -> Run:
    versions = f"{torch.__version__} {processor(torch.device('cpu'))} {_source()}"
    what = hashlib.sha256(f"{shape} {versions}".encode()).hexdigest()[:16]
    path = folder / f"loop-{loop.name}-{what}.pt2"
    with one_at_a_time(path):
        if not path.exists():
            print(
                f"compiling a loop over edges ({loop.name}), once, up to a minute: {path}",
                file=sys.stderr,
                flush=True,
            )
            package(_Graph(loop.function), loop.inputs, (loop.sizes,), path, options=ONE_LOOP)
    return torch._inductor.aoti_load_package(str(path)).loader.run


@cache
def _source() -> str:
    """Digest of the code that is compiled."""
    digest = hashlib.sha256()
    for name in ("activations", "gather", "loops"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()
