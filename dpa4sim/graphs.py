"""A network recorded as CUDA graphs: one launch for an evaluation instead of some thousand.

A graph has fixed shapes, so inputs are padded to the next bucket: silent atoms, and edges of theirs
along a vector at which every envelope is exactly zero.  A bucket is recorded when it is first met;
the buckets used least recently make room for others.  Where the device is busy anyway, beyond
`GRAPHED_UP_TO` edges, the network runs as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dpa4sim.compiled import Network
from dpa4sim.edges import PADDING_STRETCH

GRAPHED_UP_TO = 500_000
"""Edges.  Launching some thousand kernels takes as long as a few thousand atoms' arithmetic."""

GROWTH, SMALLEST = 1.25, 32
"""From one bucket to the next; atoms or edges of the first."""

MOST = 16
"""Buckets that are kept."""

WARM_UP = 3
"""Runs before a recording: libraries choose their kernels and get their memory."""

Outputs = tuple[Tensor, ...]
Recorder = Callable[[Callable[..., Outputs], Sequence[Tensor]], tuple[Callable[[], None], Outputs]]
"""(function, static inputs) -> (what runs it again on them, where the outputs appear)."""


class GraphedNetwork:
    """A network behind padded buckets.

    Args:
        network: to record; it must not read anything back from the device.
        cutoff: Å, beyond which an edge is silent.
        record: how; `on_cuda` but in tests.
    """

    def __init__(self, network: Network, cutoff: float, record: Recorder | None = None) -> None:
        self.network, self.cutoff = network, cutoff
        self.record = on_cuda if record is None else record
        self._buckets: OrderedDict[tuple[int, ...], _Bucket] = OrderedDict()

    def __call__(
        self, species: Tensor, center: Tensor, neighbor: Tensor, vector: Tensor, *state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Atomic energies and dE/dvector, as of the network.

        Args:
            state: charge and spin of each atom's system, where the network asks for them.
        """
        n_atoms, n_edges = len(species), len(vector)
        if n_edges > GRAPHED_UP_TO:
            return self.network(species, center, neighbor, vector, *state)
        bucket = self._bucket(n_atoms, n_edges, (species, center, neighbor, vector, *state))
        silent = len(bucket.inputs[0]) - 1
        away = PADDING_STRETCH * self.cutoff
        rows = (0, silent, silent, away, *(0 for _ in state))
        given = (species, center, neighbor, vector, *state)
        for static, values, padding in zip(bucket.inputs, given, rows, strict=True):
            static[: len(values)] = values
            static[len(values) :] = padding
        bucket.replay()
        energies, gradient = bucket.outputs
        return energies[:n_atoms].clone(), gradient[:n_edges].clone()

    def _bucket(self, n_atoms: int, n_edges: int, given: Sequence[Tensor]) -> _Bucket:
        """The recording for the next larger shapes, made now if there is none."""
        key = capacity(n_atoms + 1), capacity(n_edges)
        if key not in self._buckets:
            sizes = [key[0], key[1], key[1], key[1], *(key[0] for _ in given[4:])]
            inputs = [
                tensor.new_zeros(size, *tensor.shape[1:])
                for tensor, size in zip(given, sizes, strict=True)
            ]
            inputs[1].fill_(key[0] - 1)
            inputs[2].fill_(key[0] - 1)
            inputs[3].fill_(PADDING_STRETCH * self.cutoff)
            replay, outputs = self.record(self.network, inputs)
            self._buckets[key] = _Bucket(inputs, replay, outputs)
            if len(self._buckets) > MOST:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return self._buckets[key]


@dataclass(frozen=True)
class _Bucket:
    """A recording.

    Args:
        inputs: species, center, neighbor, vector and state, where the recording reads them.
        replay: runs it.
        outputs: where it leaves atomic energies and dE/dvector.
    """

    inputs: list[Tensor]
    replay: Callable[[], None]
    outputs: Outputs


def capacity(n: int) -> int:
    """The smallest size of a bucket that holds n rows."""
    size = SMALLEST
    while size < n:
        size = -(-int(GROWTH * size) // SMALLEST) * SMALLEST
    return size


def on_cuda(
    function: Callable[..., Outputs], inputs: Sequence[Tensor]
) -> tuple[Callable[[], None], Outputs]:
    """Record a function of fixed shapes as a CUDA graph.

    All recordings share their memory: none needs what is inside of it when it is run again, and
    what comes out of each stays its own.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_shared_memory(inputs[0].device)):
        outputs = function(*inputs)
    return graph.replay, outputs


@cache
def _shared_memory(device: torch.device) -> Any:
    with torch.cuda.device(device):
        return torch.cuda.graph_pool_handle()
