"""Do energies, forces and stresses of neighbouring frames belong together?

Between two near frames of the same atoms, to third order in their distance,

    E_2 - E_1  =  a (-(F_1 + F_2) / 2 . du)  +  b (V_1 S_1 + V_2 S_2) / 2 : strain
                  +  c (-(M_1 + M_2) / 2 . dm)

with du the displacements beside the strain, M the magnetic forces and dm the change of the moments.
In one system of units a = b = c = 1; stresses of the opposite sign give b = -1, gradients called
forces a = -1, and mixed units their ratio.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dpa4sim.data.frame import Frame

FARTHEST_A = 0.25
"""Displacement of every atom up to which two frames are near: a tenth of a bond."""

LARGEST_STRAIN = 0.05

LARGEST_TURN_MUB = 0.5
"""Change of every moment, in Bohr magnetons, up to which two frames are near."""

FEWEST_PAIRS = 4
"""Below this nothing is concluded."""

EXPLAINED = 0.9
"""Share of the energy differences' variance that the fit must explain before it is believed."""

LEAST_SHARE = 0.15
"""Of the explained energy differences that one term must make up before its factor is believed."""

AGREEMENT = 0.2
"""Relative distance within which a factor is 1, or one of the known ones."""

PAIRS_PER_SOURCE = 2000
"""Enough for any fit; further frames of a source are not kept."""

FACTORS = {
    "kcal/mol instead of eV": 23.0605,
    "kJ/mol instead of eV": 96.485,
    "meV instead of eV": 1000.0,
    "Hartree instead of eV": 1 / 27.2114,
    "Rydberg instead of eV": 1 / 13.6057,
    "Bohr instead of Å": 0.529177,
    "Hartree/Bohr instead of eV/Å": 1 / 51.4221,
    "GPa instead of eV/Å^3": 160.2177,
    "kBar instead of eV/Å^3": 1602.177,
}
"""Label over label in our units."""


@dataclass
class Pairs:
    """Energy differences of near frames of one source, and the works beside them."""

    energy: list[float] = field(default_factory=list)
    force_work: list[float] = field(default_factory=list)
    stress_work: list[float] = field(default_factory=list)
    magnetic_work: list[float] = field(default_factory=list)


class Neighbours:
    """Collects pairs while frames go by, source by source."""

    def __init__(self) -> None:
        self.pairs: dict[str, Pairs] = {}
        self._last: dict[tuple[str, bytes], Frame] = {}

    def add(self, frame: Frame) -> None:
        """Compare a frame with the one before it of the same source and atoms."""
        key = (frame.source, frame.system.atomic_numbers.numpy().tobytes())
        before = self._last.get(key)
        self._last[key] = frame
        pairs = self.pairs.setdefault(frame.source, Pairs())
        if before is None or len(pairs.energy) >= PAIRS_PER_SOURCE:
            return
        works = works_between(before, frame)
        if works is not None:
            energy, by_forces, by_stress, by_moments = works
            pairs.energy.append(energy)
            pairs.force_work.append(by_forces)
            pairs.stress_work.append(by_stress)
            pairs.magnetic_work.append(by_moments)

    def findings(self) -> list[tuple[str, str, str]]:
        """(source, label, sentence) of every source whose labels do not belong together."""
        found = []
        for source, pairs in self.pairs.items():
            for label, factor in factors_of(pairs).items():
                text = complaint_about(label, factor)
                if text is not None:
                    found.append((source, label, text))
        return found


def works_between(first: Frame, second: Frame) -> tuple[float, float, float, float] | None:
    """Energy difference, work of forces, of the stress and of magnetic forces, eV; NaN unlabelled.

    None when the frames are not near, or have no energies.
    """
    if first.energy is None or second.energy is None:
        return None
    moved = _displacement(first, second)
    if moved is None:
        return None
    displacement, strain = moved
    by_forces = by_stress = float("nan")
    if first.forces is not None and second.forces is not None:
        by_forces = -float(np.sum(0.5 * (first.forces + second.forces) * displacement))
    if first.stress is not None and second.stress is not None:
        sides = [f.stress * float(f.system.volume[0]) for f in (first, second)]  # type: ignore[operator]
        by_stress = float(np.sum(0.5 * (sides[0] + sides[1]) * strain))
    elif np.any(strain):
        return None
    by_moments = _magnetic_work(first, second)
    if by_moments is None:
        return None
    return second.energy - first.energy, by_forces, by_stress, by_moments


def _magnetic_work(first: Frame, second: Frame) -> float | None:
    """-(M_1 + M_2) / 2 . dm in eV, NaN without moments; None when they are far or not labelled."""
    if first.magmoms is None or second.magmoms is None:
        return float("nan") if first.magmoms is second.magmoms else None
    change = second.magmoms - first.magmoms
    if not np.any(change):
        return float("nan")
    if first.magnetic_forces is None or second.magnetic_forces is None:
        return None
    if np.linalg.norm(change, axis=1).max() > LARGEST_TURN_MUB:
        return None
    return -float(np.sum(0.5 * (first.magnetic_forces + second.magnetic_forces) * change))


def factors_of(pairs: Pairs) -> dict[str, float]:
    """The factors a (forces), b (stress), c (moments) of the terms that the energies can tell."""
    target = np.array(pairs.energy)
    terms = {"forces": np.array(pairs.force_work), "stress": np.array(pairs.stress_work)}
    terms["magnetic forces"] = np.array(pairs.magnetic_work)
    terms = {name: work for name, work in terms.items() if np.isfinite(work).any() and work.any()}
    if not terms:
        return {}
    usable = np.all([np.isfinite(work) for work in terms.values()], axis=0)
    if usable.sum() < FEWEST_PAIRS:
        return {}
    matrix = np.stack([work[usable] for work in terms.values()], 1)
    target = target[usable]
    scale = np.linalg.norm(matrix, axis=0)
    keep = scale > 0
    fit = np.zeros(len(scale))
    fit[keep] = np.linalg.lstsq(matrix[:, keep] / scale[keep], target, rcond=1e-6)[0] / scale[keep]
    rest = target - matrix @ fit
    total = float(np.sum(target**2))
    if total == 0 or 1 - float(np.sum(rest**2)) / total < EXPLAINED:
        return {}
    share = np.linalg.norm(matrix * fit, axis=0) / np.sqrt(total)
    return {
        name: float(factor)
        for name, factor, part in zip(terms, fit, share, strict=True)
        if part > LEAST_SHARE
    }


def complaint_about(label: str, factor: float) -> str | None:
    """What a factor of the energy differences says about a label; None when it is 1."""
    if abs(factor - 1) < AGREEMENT:
        return None
    if abs(factor + 1) < AGREEMENT:
        other = (
            "pressures, compression positive" if label == "stress" else "the energies' gradients"
        )
        return (
            f"the {label} have the opposite sign: they fit the energies of neighbouring frames as "
            f"{other}"
        )
    ratio = 1 / abs(factor)
    sign = " and the opposite sign" if factor < 0 else ""
    named = guess(ratio, label)
    return (
        f"the {label} and the energies are in different units: {label} are {ratio:.4g} times what "
        f"the energies of neighbouring frames ask for{named}{sign}"
    )


def guess(ratio: float, label: str) -> str:
    """The mistake that gives this ratio of a label to its right value, or nothing.

    Args:
        ratio: of the label to what the energies ask for.
        label: energy, forces or stress.
    """
    for value, word in ((ratio, label), (1 / ratio, "energies")):
        name = min(FACTORS, key=lambda key: abs(np.log(value / FACTORS[key])))
        if abs(np.log(value / FACTORS[name])) < AGREEMENT / 2:
            return f", as if the {word} were in {name}"
    return ""


def _displacement(first: Frame, second: Frame) -> tuple[np.ndarray, np.ndarray] | None:
    """Shifts of the atoms beside a homogeneous strain, and that strain; None when far."""
    start, end = (f.system.positions.numpy() for f in (first, second))
    old, new = (f.system.cell[0].numpy() for f in (first, second))
    if not bool((first.system.pbc == second.system.pbc).all()):
        return None
    if float(first.system.volume[0]) == 0 or float(second.system.volume[0]) == 0:
        moved, strain = end - start, np.zeros((3, 3))
    else:
        fractional = end @ np.linalg.inv(new) - start @ np.linalg.inv(old)
        fractional -= np.rint(fractional) * first.system.pbc[0].numpy()
        moved = fractional @ (0.5 * (old + new))
        gradient = np.linalg.inv(0.5 * (old + new)) @ (new - old)
        strain = 0.5 * (gradient + gradient.T)
    if np.linalg.norm(moved, axis=1).max() > FARTHEST_A or np.abs(strain).max() > LARGEST_STRAIN:
        return None
    return moved, strain
