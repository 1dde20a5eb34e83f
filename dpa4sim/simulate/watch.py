"""What a run keeps an eye on: averages, displacements and pair distances, on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.edges import neighbors
from dpa4sim.simulate.observables import (
    Origin,
    PairDistances,
    Thermodynamics,
    count_pairs,
    displacements,
    mean_square,
    origin,
    pair_distances,
    thermodynamics,
)
from dpa4sim.simulate.state import MDState, conserved_energy

AVERAGED = ("energy", "kinetic_energy", "temperature", "pressure_gpa", "volume")
"""Fields of `Thermodynamics` of which a run states the mean."""


@dataclass(frozen=True)
class Watch:
    """What has been seen of each system.

    Args:
        origin: where displacements are counted from.
        sums: of each of `AVERAGED` over the samples.
        n_samples: how many.
        skip: steps before the first sample.
        conserved: what the equations of motion conserve, at the start, eV.
        pairs: None when no pair distances are counted.
    """

    origin: Origin
    sums: Float[Tensor, "system quantity"]
    n_samples: Int[Tensor, " system"]
    skip: Int[Tensor, " system"]
    conserved: Float[Tensor, " system"]
    pairs: PairDistances | None


def watch(state: MDState, skip: Int[Tensor, " system"], rdf_max: float, rdf_bins: int) -> Watch:
    """Nothing seen yet.

    Args:
        skip: steps of each system before its first sample.
        rdf_max: range of the pair distances in Å; 0 to count none.
        rdf_bins: bins over that range.
    """
    batch = state.batch
    return Watch(
        origin=origin(batch),
        sums=torch.zeros(batch.n_systems, len(AVERAGED), dtype=torch.float64, device=batch.device),
        n_samples=torch.zeros_like(batch.n_atoms),
        skip=skip,
        conserved=conserved_energy(state),
        pairs=pair_distances(batch, r_max=rdf_max, n_bins=rdf_bins) if rdf_max else None,
    )


def look(
    seen: Watch, state: MDState, due: Bool[Tensor, " system"]
) -> tuple[Watch, Thermodynamics, Float[Tensor, " system"]]:
    """Take a sample of the systems that are due; also the thermodynamics and the MSD of all.

    Displacements count from the end of the skipped steps, which must be a time of a sample.
    """
    batch = state.batch
    now = thermodynamics(
        batch,
        state.prediction.energy,
        state.prediction.stress,
        state.velocities,
        state.masses,
        state.conditions.degrees_of_freedom,
    )
    starting = due & (state.steps <= seen.skip)
    counted = due & (state.steps >= seen.skip)
    fresh = origin(batch)
    atoms = starting[batch.system_idx, None]
    start = Origin(
        torch.where(atoms, fresh.positions, seen.origin.positions),
        torch.where(starting[:, None, None], fresh.inverse_cell, seen.origin.inverse_cell),
    )
    values = torch.stack([getattr(now, name) for name in AVERAGED], 1)
    pairs = seen.pairs
    if pairs is not None:
        pairs = count_pairs(pairs, batch, neighbors(batch, pairs.r_max), counted)
    moved = mean_square(displacements(start, batch, state.masses), batch)
    seen = replace(
        seen,
        origin=start,
        sums=seen.sums + torch.where(counted[:, None], values, 0.0),
        n_samples=seen.n_samples + counted,
        pairs=pairs,
    )
    return seen, now, moved
