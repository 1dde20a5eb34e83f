"""What is measured on the way, on the device: thermodynamics, displacements, pair distances.

Every function is pure, works on a packed batch, gives a system the same bits in any batch, and
reads nothing back.  What accumulates is a record that `pool.pack` can take apart and join when it
is part of a record that holds the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dpa4sim.batch import Batch, dot, sum_over_atoms
from dpa4sim.edges import Edges
from dpa4sim.errors import ConfigError
from dpa4sim.lattice import inverse, matmul
from dpa4sim.units import BOLTZMANN_EV_K, EV_PER_AMU_A2_FS2, GPA_PER_EV_A3

EMPTY_A3 = 1e-6
"""A cell of less volume is no cell: its system has no density, and its atoms no fractions."""


@dataclass(frozen=True)
class Thermodynamics:
    """One number of each kind per system.

    Args:
        energy: potential energy, eV.
        kinetic_energy: eV.
        total_energy: eV.
        temperature: K.
        pressure_gpa: virial and kinetic part, GPa; NaN without a volume.
        volume: Å^3.
    """

    energy: Float[Tensor, " system"]
    kinetic_energy: Float[Tensor, " system"]
    total_energy: Float[Tensor, " system"]
    temperature: Float[Tensor, " system"]
    pressure_gpa: Float[Tensor, " system"]
    volume: Float[Tensor, " system"]


def thermodynamics(
    batch: Batch,
    energy: Float[Tensor, " system"],
    stress: Float[Tensor, "system 3 3"],
    velocities: Float[Tensor, "atom 3"],
    masses: Float[Tensor, " atom"],
    degrees_of_freedom: Int[Tensor, " system"],
) -> Thermodynamics:
    """Everything that one number per system can say.

    Args:
        energy: potential energy, eV.
        stress: of the potential, eV/Å^3, tension positive.
        velocities: Å/fs.
        masses: amu.
    """
    kinetic, volume = kinetic_energy(batch, velocities, masses), batch.volume
    return Thermodynamics(
        energy=energy,
        kinetic_energy=kinetic,
        total_energy=energy + kinetic,
        temperature=temperature(kinetic, degrees_of_freedom),
        pressure_gpa=GPA_PER_EV_A3 * pressure(stress, kinetic, volume),
        volume=volume,
    )


def kinetic_energy(
    batch: Batch, velocities: Float[Tensor, "atom 3"], masses: Float[Tensor, " atom"]
) -> Float[Tensor, " system"]:
    """K = sum_i m_i v_i^2 / 2 in eV, of velocities in Å/fs and masses in amu."""
    return sum_over_atoms(0.5 * EV_PER_AMU_A2_FS2 * masses * dot(velocities, velocities), batch)


def temperature(
    kinetic: Float[Tensor, " system"], degrees_of_freedom: Int[Tensor, " system"]
) -> Float[Tensor, " system"]:
    """T = 2 K / (f k_B) in K."""
    return 2 * kinetic / (BOLTZMANN_EV_K * degrees_of_freedom.to(kinetic.dtype))


def pressure(
    stress: Float[Tensor, "system 3 3"],
    kinetic: Float[Tensor, " system"],
    volume: Float[Tensor, " system"],
) -> Float[Tensor, " system"]:
    """P = 2 K / (3 V) - tr(sigma) / 3 in eV/Å^3; NaN without a volume.

    Args:
        stress: of the potential, eV/Å^3, tension positive.
    """
    virial = (stress[:, 0, 0] + stress[:, 1, 1] + stress[:, 2, 2]) / 3
    return 2 * kinetic / (3 * _or_nan(volume)) - virial


@dataclass(frozen=True)
class Origin:
    """Where the atoms were when the clock of a displacement started.

    Args:
        positions: Å.
        inverse_cell: 1/Å; zero for a system without a volume.
    """

    positions: Float[Tensor, "atom 3"]
    inverse_cell: Float[Tensor, "system 3 3"]


def origin(batch: Batch) -> Origin:
    """Displacements start here."""
    solid = (batch.volume > EMPTY_A3)[:, None, None]
    return Origin(batch.positions, torch.where(solid, inverse(batch.cell), 0.0))


def displacements(
    start: Origin, batch: Batch, masses: Float[Tensor, " atom"]
) -> Float[Tensor, "atom 3"]:
    """How far the atoms have moved in the present cell, without the drift of the whole, in Å

        D = h_0^-1 h,    d_i = r_i - r_i0 D - sum_j m_j (r_j - r_j0 D) / sum_j m_j

    The positions of the engine are never wrapped, so d_i counts every crossing of the cell.  What
    a barostat does to cell and positions alike cancels: in a fixed cell, or none, D = 1.

    Args:
        masses: amu.
    """
    deformed = matmul(start.inverse_cell, batch.cell)
    one = torch.eye(3, dtype=deformed.dtype, device=deformed.device)
    solid = (batch.volume > EMPTY_A3)[:, None, None]
    deformed = torch.where(solid, deformed, one)
    moved = batch.positions - matmul(start.positions[:, None], deformed[batch.system_idx])[:, 0]
    total = sum_over_atoms(masses, batch)
    drift = [sum_over_atoms(masses * moved[:, axis], batch) / total for axis in range(3)]
    return moved - torch.stack(drift, 1)[batch.system_idx]


def mean_square(
    displacement: Float[Tensor, "atom 3"], batch: Batch, element: int | None = None
) -> Float[Tensor, " system"]:
    """MSD = sum_i |d_i|^2 / n in Å^2, over all atoms or those of one element.

    Args:
        element: atomic number; NaN for a system that has none of it.
    """
    square = dot(displacement, displacement)
    if element is None:
        return sum_over_atoms(square, batch) / batch.n_atoms
    chosen = (batch.atomic_numbers == element).to(square.dtype)
    return sum_over_atoms(chosen * square, batch) / sum_over_atoms(chosen, batch)


@dataclass(frozen=True)
class PairDistances:
    """Distances of pairs of atoms, counted in bins of equal width over many samples.

    Args:
        counts: directed pairs, all samples together.
        weighted: the same, each sample times its volume, Å^3.
        n_samples: of each system.
        r_max: end of the last bin, Å.
        pair: atomic numbers of the center and the neighbor; None for all atoms.
    """

    counts: Int[Tensor, "system bin"]
    weighted: Float[Tensor, "system bin"]
    n_samples: Int[Tensor, " system"]
    r_max: float
    pair: tuple[int, int] | None = None


def pair_distances(
    batch: Batch, *, r_max: float, n_bins: int, pair: tuple[int, int] | None = None
) -> PairDistances:
    """Nothing counted yet.

    Raises:
        ConfigError: no bins, or no range.
    """
    if n_bins < 1 or not r_max > 0:
        raise ConfigError(
            f"n_bins = {n_bins}, r_max = {r_max}. Give at least one bin and a positive range in Å."
        )
    counts = torch.zeros(batch.n_systems, n_bins, dtype=torch.long, device=batch.device)
    weighted = torch.zeros_like(counts, dtype=torch.float64)
    return PairDistances(counts, weighted, torch.zeros_like(batch.n_atoms), r_max, pair)


def count_pairs(
    distances: PairDistances, batch: Batch, edges: Edges, due: Bool[Tensor, " system"]
) -> PairDistances:
    """Add one sample of the systems that are due.

    The sums run over integers: their order does not matter.

    Args:
        edges: every pair up to `r_max` or beyond: those of a model whose cutoff is as long, or
            `edges.neighbors(batch, r_max)`.
    """
    n_systems, n_bins = distances.counts.shape
    length = dot(edges.vector, edges.vector).sqrt()
    bins = (length * (n_bins / distances.r_max)).long().clamp(max=n_bins)
    chosen = torch.ones_like(bins)
    if distances.pair is not None:
        center, neighbor = distances.pair
        of_center = batch.atomic_numbers[edges.center] == center
        chosen = (of_center & (batch.atomic_numbers[edges.neighbor] == neighbor)).long()
    place = batch.system_idx[edges.center] * (n_bins + 1) + bins
    sample = torch.zeros(n_systems * (n_bins + 1), dtype=torch.long, device=bins.device)
    sample = sample.index_add(0, place, chosen).reshape(n_systems, n_bins + 1)[:, :n_bins]
    sample = torch.where(due[:, None], sample, 0)
    return replace(
        distances,
        counts=distances.counts + sample,
        weighted=distances.weighted + sample * batch.volume[:, None],
        n_samples=distances.n_samples + due,
    )


def radii(distances: PairDistances) -> Float[Tensor, " bin"]:
    """Middle of each bin in Å."""
    n_bins = distances.counts.shape[1]
    return (torch.arange(n_bins, device=distances.counts.device).double() + 0.5) * (
        distances.r_max / n_bins
    )


def radial_distribution(distances: PairDistances, batch: Batch) -> Float[Tensor, "system bin"]:
    """g(r), 1 where pairs lie as thick as anywhere

        g_k = sum_t V_t n_k,t / (t n_a n_b v_k),    v_k the volume of the shell

    The density is n_b / V, atoms and their own images counted: the integral of
    4 pi r^2 g n_b / V is the coordination number.  NaN without a volume or a sample.
    """
    n_bins = distances.counts.shape[1]
    edge = torch.arange(n_bins + 1, device=batch.device).double() * (distances.r_max / n_bins)
    shell = 4 * pi / 3 * (edge[1:] ** 3 - edge[:-1] ** 3)
    centers, partners = _pair_members(distances, batch)
    expected = distances.n_samples * (centers * partners)
    solid = torch.where(batch.volume > EMPTY_A3, expected, torch.nan)
    return distances.weighted / (solid[:, None] * shell)


def coordination(distances: PairDistances, batch: Batch) -> Float[Tensor, "system bin"]:
    """Mean number of neighbours of a center up to the end of each bin; needs no volume."""
    centers, _ = _pair_members(distances, batch)
    return distances.counts.cumsum(1) / (centers * distances.n_samples)[:, None]


def _pair_members(distances: PairDistances, batch: Batch) -> tuple[Tensor, Tensor]:
    """How many atoms of each system may be a center, and how many a neighbor."""
    if distances.pair is None:
        return batch.n_atoms.double(), batch.n_atoms.double()
    center, neighbor = (
        sum_over_atoms((batch.atomic_numbers == element).double(), batch)
        for element in distances.pair
    )
    return center, neighbor


def _or_nan(volume: Float[Tensor, " system"]) -> Float[Tensor, " system"]:
    return torch.where(volume > EMPTY_A3, volume, torch.nan)
