"""What is in a store: energies per species, ranges, and frames that stand out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from dpa4sim.batch import symbol
from dpa4sim.config import PropertyConfig
from dpa4sim.data.frame import MAGNETIC_FORCES, MOMENTS, QUANTITIES
from dpa4sim.data.layout import property_path
from dpa4sim.data.store import Store
from dpa4sim.errors import ConfigError, DataError

RIDGE = 1e-8
"""Share of the largest eigenvalue: settles only what the compositions leave open."""

ROBUST_Z = 12.0
"""Robust standard deviations of the energy per atom from which on a frame stands out."""

LARGEST_FORCE_EV_A = 50.0
"""A force above this is seen in collisions and in failed calculations."""

SHORTEST_A = 0.6
"""A pair below this is closer than the atoms of H2 (0.74 Å)."""

LEAST_SPREAD = 1e-8
"""Spread of a property, as a share of its largest value, below which it is rounding."""

FRAMES_PER_FIT = 4096
"""Rows of the composition matrix that are in memory at once."""


@dataclass(frozen=True)
class Range:
    """Of one quantity.

    Args:
        unit: of the numbers.
        n_frames: frames that carry it.
        low: the smallest number; `high` the largest, `mean` and `spread` (standard deviation).
    """

    unit: str
    n_frames: int
    low: float
    high: float
    mean: float
    spread: float


@dataclass(frozen=True)
class Summary:
    """What a store holds.

    Args:
        frames: frames; `atoms` atoms in all.
        elements: frames that contain each element, by symbol.
        subsets: frames of each subset.
        coverage: frames with each label.
        ranges: energy per atom, force norm, pressure (minus a third of the stress's trace); of
            stores with spins also lengths of moments and magnetic forces, where a moment is.
        edges: per frame at `cutoff` Å: smallest, mean, largest.
        shortest: Å, the shortest pair distance of all.
    """

    frames: int
    atoms: int
    elements: Mapping[str, int]
    subsets: Mapping[str, int]
    coverage: Mapping[str, int]
    ranges: Mapping[str, Range]
    cutoff: float
    edges: tuple[int, float, int]
    shortest: float


@dataclass(frozen=True)
class Outlier:
    """A frame that stands out; it is listed, never dropped.

    Args:
        frame: row of the store.
        where: its name in the file that it came from.
        reason: what stands out.
    """

    frame: int
    where: str
    reason: str


def energy_shifts(
    store: Store,
    frames: np.ndarray | None = None,
    species: Sequence[str] | None = None,
    *,
    given: Mapping[str, float] | None = None,
) -> Float[np.ndarray, " species"]:
    """Energies of the species that explain the energies of the frames best, in eV.

        minimise  sum_f ((E_f - sum_s n_fs shift_s) / N_f)^2

    by normal equations, a few thousand frames at a time.  Where compositions do not tell species
    apart (all frames are H2O), the shifts of least norm are taken.

    Args:
        store: the frames.
        frames: rows to use; None all.  Those without an energy do not count.
        species: symbols, the order of the answer; None those of the store.
        given: shifts that are known and stay, such as those of isolated atoms.

    Raises:
        ConfigError: `given` names a species that is not asked for.
        DataError: nothing to fit to.
    """
    names = tuple(store.species if species is None else species)
    known = dict(given or {})
    strange = [name for name in known if name not in names]
    if strange:
        raise ConfigError(
            f"An energy is given for {strange[0]}, which is not among the species "
            f"{', '.join(names)}. Remove it or add the species."
        )
    shifts = np.array([known.get(name, 0.0) for name in names])
    free = np.array([name not in known for name in names])
    if not free.any():
        return shifts
    left, right, n_fitted = np.zeros((free.sum(),) * 2), np.zeros(free.sum()), 0
    for _, counts, energy in compositions(store, names, frames):
        size = counts.sum(1)
        rows = counts[:, free] / size[:, None]
        left += rows.T @ rows
        right += rows.T @ ((energy - counts @ shifts) / size)
        n_fitted += len(energy)
    if not n_fitted:
        raise DataError(
            f"{store.path} has no frame with an energy to fit shifts to. Give the shifts, or "
            "convert with --energy-key."
        )
    shifts[free] = np.linalg.pinv(left, rcond=RIDGE, hermitian=True) @ right
    return shifts


def property_statistics(
    store: Store, frames: np.ndarray, species: Sequence[str], head: PropertyConfig
) -> tuple[Float[np.ndarray, "species task"], Float[np.ndarray, " task"]]:
    """Bias of each species' share of a property, and the spread of what the biases leave.

        minimise  sum_f (y_f - sum_s n_fs bias_s)^2,    spread = std_f(y_f - sum_s n_fs bias_s)

    as the reference has it, of least norm; for an intensive property with n_fs / N_f instead of
    n_fs.  Without `by_species` the bias is the mean of the labels (per atom when extensive), and
    the spread their standard deviation.

    Raises:
        DataError: no frame has the property, or it has another number of numbers.
    """
    width = store.properties.get(head.name)
    if width != head.task_dim and width is not None:
        raise DataError(
            f"{store.path}: its property '{head.name}' has {width} numbers. Set "
            f"property_head.task_dim = {width}."
        )
    blocks = [
        (counts / counts.sum(1, keepdims=True) if head.intensive else counts, counts.sum(1), y)
        for _, counts, y in compositions(store, species, frames, of=head.name)
    ]
    if not blocks:
        raise DataError(f"{store.path} has no frame with the property '{head.name}'.")
    rows, size, labels = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    if head.by_species:
        bias = np.linalg.lstsq(rows, labels, rcond=None)[0]
        spread = (labels - rows @ bias).std(0)
    else:
        each = labels if head.intensive else labels / size[:, None]
        bias, spread = np.tile(each.mean(0), (len(species), 1)), each.std(0)
    flat = spread <= LEAST_SPREAD * np.abs(labels).max(0)
    return bias, np.where(flat, 1.0, spread)


def compositions(
    store: Store,
    species: Sequence[str],
    frames: np.ndarray | None = None,
    of: str | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows, atoms of each species, and energies of the frames that have one, in blocks.

    Args:
        of: a property, whose numbers are given instead of energies.

    Raises:
        DataError: the frames hold an element that is not among the species.
    """
    from ase.data import atomic_numbers

    column = np.full(256, -1)
    column[[atomic_numbers[name] for name in species]] = np.arange(len(species))
    rows = np.arange(len(store)) if frames is None else np.sort(frames)
    has = store.has("energy") if of is None else store.has_property(of)
    label = "frames/energy" if of is None else property_path(of)
    rows = rows[has[rows]]
    for start in range(0, len(rows), FRAMES_PER_FIT):
        block = rows[start : start + FRAMES_PER_FIT]
        found = store.columns(block, ["atoms/atomic_numbers", label])
        numbers = found["atoms/atomic_numbers"]
        kind = column[numbers]
        if (kind < 0).any():
            name = symbol(int(numbers[kind < 0][0]))
            raise DataError(
                f"{store.path} holds {name}, which is not among the species. Add it to them."
            )
        owner = np.repeat(np.arange(len(block)), store.n_atoms[block])
        flat = np.bincount(owner * len(species) + kind, minlength=len(block) * len(species))
        yield block, flat.reshape(len(block), len(species)).astype(float), found[label]


def isolated_energies(store: Store) -> dict[str, float]:
    """Energies in eV of frames of one atom alone, by symbol, for `energy_shifts(given=...)`."""
    alone = (store.n_atoms == 1) & (store.n_edges(store.cutoffs[-1]) == 0) & store.has("energy")
    rows = np.flatnonzero(alone)
    if not len(rows):
        return {}
    found = store.columns(rows, ["atoms/atomic_numbers", "frames/energy"])
    pairs = zip(found["atoms/atomic_numbers"], found["frames/energy"], strict=True)
    return {symbol(int(number)): float(energy) for number, energy in pairs}


def without_close_pairs(store: Store, min_pair_dist: float) -> Bool[np.ndarray, " frame"]:
    """Frames that may train a ZBL-bridged model: no pair closer than its inner radius, in Å."""
    return store.min_distance >= min_pair_dist


def summary(store: Store) -> Summary:
    """Count and measure everything in one pass."""
    ranges = {"energy": _Sums("eV/atom"), "forces": _Sums("eV/Å"), "stress": _Sums("eV/Å^3")}
    spins = {MOMENTS: "μB", MAGNETIC_FORCES: "eV/μB"} if store.has_spins else {}
    ranges |= {name: _Sums(unit) for name, unit in spins.items()}
    has = {name: store.has(name) for name in (*QUANTITIES, *spins)}
    elements = dict.fromkeys(store.atomic_numbers, 0)
    for block in store.blocks():
        rows, n_atoms = block.frame.numpy(), block.batch.n_atoms.numpy()
        numbers = block.batch.atomic_numbers.numpy()
        owner = block.batch.system_idx.numpy()
        for z in elements:
            elements[z] += len(np.unique(owner[numbers == z]))
        energy, forces, stress = (x.numpy() for x in (block.energy, block.forces, block.stress))
        chosen = {name: flags[rows] for name, flags in has.items()}
        ranges["energy"].add((energy / n_atoms)[chosen["energy"]])
        ranges["forces"].add(np.linalg.norm(forces[chosen["forces"][owner]], axis=1))
        for name in spins:
            magnetic = (block.batch.magmoms.numpy() != 0).any(1)  # type: ignore[union-attr]
            values = block.batch.magmoms if name == MOMENTS else block.magnetic_forces
            there = chosen[name][owner] & magnetic
            ranges[name].add(np.linalg.norm(values.numpy()[there], axis=1))  # type: ignore[union-attr]
        ranges["stress"].add(-np.trace(stress[chosen["stress"]], axis1=1, axis2=2) / 3)
    cutoff = store.cutoffs[-1]
    edges = store.n_edges(cutoff)
    in_subset = np.bincount(store.subset_of, minlength=len(store.subsets)).tolist()
    coverage = {name: int(flags.sum()) for name, flags in has.items()}
    coverage |= {name: int(store.has(name).sum()) for name in ("charge", "spin")}
    return Summary(
        frames=len(store),
        atoms=int(store.n_atoms.sum()),
        elements={symbol(z): n for z, n in elements.items()},
        subsets=dict(zip(store.subsets, in_subset, strict=True)),
        coverage=coverage,
        ranges={name: sums.range(coverage[name]) for name, sums in ranges.items() if sums.n},
        cutoff=cutoff,
        edges=(int(edges.min()), float(edges.mean()), int(edges.max())),
        shortest=float(store.min_distance.min()),
    )


def outliers(store: Store, shifts: Mapping[str, float] | None = None) -> list[Outlier]:
    """Frames with an energy, a force or a distance that few have, in the order of the store.

    Args:
        store: the frames.
        shifts: energy of each species in eV; None fits them.
    """
    found: dict[int, list[str]] = {}
    for row in np.flatnonzero(store.min_distance < SHORTEST_A):
        reason = f"two atoms are {store.min_distance[row]:.3f} Å apart"
        found.setdefault(int(row), []).append(reason)
    for row, z in _far_energies(store, shifts):
        found.setdefault(row, []).append(f"its energy per atom is {z:+.0f} robust deviations off")
    for block in store.blocks(np.flatnonzero(store.has("forces"))):
        norms = np.linalg.norm(block.forces.numpy(), axis=1)
        for atom in np.flatnonzero(norms > LARGEST_FORCE_EV_A):
            system = int(block.batch.system_idx[atom])
            row, first = int(block.frame[system]), int(block.batch.n_atoms[:system].sum())
            reason = f"atom {atom - first} feels {norms[atom]:.3g} eV/Å"
            found.setdefault(row, []).append(reason)
    return [Outlier(row, store.where(row), "; ".join(found[row])) for row in sorted(found)]


def _far_energies(store: Store, shifts: Mapping[str, float] | None) -> list[tuple[int, float]]:
    """Rows whose energy per atom, shifts taken off, is far from the median, and how far."""
    if not store.has("energy").any():
        return []
    names = store.species
    of_species = energy_shifts(store) if shifts is None else np.array([shifts[n] for n in names])
    rows, rest = [], []
    for block, counts, energy in compositions(store, names):
        rows.append(block)
        rest.append((energy - counts @ of_species) / counts.sum(1))
    row, value = np.concatenate(rows), np.concatenate(rest)
    off = value - np.median(value)
    deviation = max(1.4826 * float(np.median(np.abs(off))), 1e-3)  # meV/atom are no outliers
    far = np.abs(off) > ROBUST_Z * deviation
    return list(zip(row[far].tolist(), (off[far] / deviation).tolist(), strict=True))


class _Sums:
    """Range, mean and spread of numbers that come in blocks."""

    def __init__(self, unit: str) -> None:
        self.unit, self.n, self.mean, self.squares = unit, 0, 0.0, 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: np.ndarray) -> None:
        """Merge a block (Chan et al., parallel variance)."""
        if not len(values):
            return
        n, mean = len(values), float(values.mean())
        both, off = self.n + n, mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + off * off * self.n * n / both
        self.mean += off * n / both
        self.n = both
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())

    def range(self, n_frames: int) -> Range:
        """What was found."""
        spread = float(np.sqrt(self.squares / self.n))
        return Range(self.unit, n_frames, float(self.low), float(self.high), self.mean, spread)
