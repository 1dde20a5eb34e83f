"""The order of an epoch, cut into batches of so many edges.

The cost of an atom is its number of neighbours, 15 to 158 within 6 Å, so a batch holds a budget of
edges, not a number of frames.  An epoch is a pure function of (seed, number): a cursor (epoch,
batch) is all that a checkpoint needs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from heapq import heapify, heapreplace

import numpy as np

from dpa4sim.errors import ConfigError, DataError

WINDOW = 64
"""Batches whose frames are dealt together: a larger window fills better and mixes less."""


class EdgeBudget:
    """Batches of at most `max_edges` edges, every frame once per epoch.

    A permutation is cut into windows worth 64 batches; inside one, frames are dealt from the
    largest to the smallest, each to the batch that has least: batches end up alike, in edges and in
    kind.  An atom without neighbours counts as an edge.

    The epoch's batches are one list for all ranks, of a length that `multiple` divides; rank r
    takes every world-th from r on.  So ranks take equally many, and one process that takes `world`
    batches per step does what `world` ranks do.  Where the length does not come out, the last
    batches are halved until it does.

    Args:
        n_edges: of each frame.
        n_atoms: of each frame.
        max_edges: a frame with more goes alone, with one warning.
        seed: of the order.
        rank: of this process, from 0.
        world: processes.
        max_atoms: also at most so many atoms.
        multiple: the number of batches in an epoch is one of this; None takes `world`.

    Raises:
        ConfigError: a budget below 1, a rank outside the world, an odd multiple.
        DataError: no frame at all, or fewer than have to go round.
    """

    def __init__(
        self,
        n_edges: Sequence[int] | np.ndarray,
        n_atoms: Sequence[int] | np.ndarray,
        *,
        max_edges: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        max_atoms: int | None = None,
        multiple: int | None = None,
    ) -> None:
        self.n_edges, self.n_atoms = np.asarray(n_edges), np.asarray(n_atoms)
        self.max_edges, self.max_atoms, self.seed = max_edges, max_atoms, seed
        self.rank, self.world, self.multiple = rank, world, multiple or world
        self._check()
        self._cost = np.maximum(self.n_edges, self.n_atoms) / max_edges
        if max_atoms is not None:  # the sum of the larger costs is at least the larger of the sums
            self._cost = np.maximum(self._cost, self.n_atoms / max_atoms)
        alone = int((self._cost > 1).sum())
        if alone:
            warnings.warn(
                f"{alone} of {len(self._cost)} frames are larger than a batch of {max_edges} edges "
                f"(the largest has {self.n_edges.max()}); each goes alone.",
                stacklevel=2,
            )

    def epoch(self, number: int) -> list[np.ndarray]:
        """This rank's batches of an epoch, each a list of frames."""
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, number)))
        order = rng.permutation(len(self._cost))
        total = np.cumsum(self._cost[order])
        cuts = np.searchsorted(total, np.arange(WINDOW, total[-1], WINDOW))
        batches = []
        for window in np.split(order, cuts):
            dealt = self._deal(window)
            batches += [dealt[k] for k in rng.permutation(len(dealt))]
        return _evened(batches, self.multiple)[self.rank :: self.world]

    def fill(self, batches: Sequence[np.ndarray]) -> float:
        """Mean share of the budget that batches use, those of one too large frame left out."""
        shares = np.array([self._cost[batch].sum() for batch in batches])
        return float(shares[shares <= 1 + 1e-9].mean()) if (shares <= 1 + 1e-9).any() else 1.0

    def _deal(self, window: np.ndarray) -> list[np.ndarray]:
        """The frames of a window in as few batches as dealing makes fit."""
        cost = self._cost[window]
        alone = [window[k : k + 1] for k in np.flatnonzero(cost > 1)]
        window, cost = window[cost <= 1], cost[cost <= 1]
        if not len(window):
            return alone
        by_size = np.argsort(-cost, kind="stable")
        window, sizes = window[by_size], cost[by_size].tolist()
        n_batches = max(int(np.ceil(cost.sum() - 1e-9)), int((cost > 0.5).sum()), 1)
        while (places := _dealt(sizes, n_batches)) is None:
            n_batches += 1 + n_batches // 100
        sorted_by_place = np.argsort(places, kind="stable")
        counts = np.bincount(places, minlength=n_batches)
        parts = np.split(window[sorted_by_place], np.cumsum(counts)[:-1])
        return alone + [part for part in parts if len(part)]

    def _check(self) -> None:
        if self.max_edges < 1 or (self.max_atoms is not None and self.max_atoms < 1):
            raise ConfigError(
                f"A batch of {self.max_edges} edges and {self.max_atoms} atoms holds nothing. "
                "Give 1 or more."
            )
        if not 0 <= self.rank < self.world or self.multiple % self.world:
            raise ConfigError(
                f"Rank {self.rank} of {self.world} with {self.multiple} batches at a time cannot "
                "be. Ranks count from 0, and the world divides the multiple."
            )
        if len(self.n_edges) != len(self.n_atoms) or len(self.n_edges) < self.multiple:
            raise DataError(
                f"{len(self.n_edges)} frames cannot be shared in {self.multiple} batches at a "
                "time. Give more frames or fewer processes."
            )


def _dealt(sizes: list[float], n_batches: int) -> np.ndarray | None:
    """Batch of each size, from the largest on to the emptiest batch; None when one overflows."""
    heap = [(0.0, k) for k in range(n_batches)]
    heapify(heap)
    places = np.empty(len(sizes), np.int64)
    for index, size in enumerate(sizes):
        used, place = heap[0]
        if used + size > 1 + 1e-9:
            return None
        heapreplace(heap, (used + size, place))
        places[index] = place
    return places


def _evened(batches: list[np.ndarray], multiple: int) -> list[np.ndarray]:
    """The last batches halved, the longest first, until the number of batches is a multiple."""
    missing = -len(batches) % multiple
    if not missing:
        return batches
    start = len(batches) - (multiple - missing)
    while sum(map(len, batches[start:])) < len(batches) - start + missing:
        start = max(0, start - multiple)
    tail = batches[start:]
    for _ in range(missing):
        longest = max(range(len(tail)), key=lambda k: len(tail[k]))
        part = tail.pop(longest)
        tail += [part[::2], part[1::2]]
    return batches[:start] + tail
