"""Do two files hold energies and forces of one scale?  Mixed units show between files."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dpa4sim.data.consistency import guess
from dpa4sim.data.frame import Frame

N_ELEMENTS = 119

SMALLEST_EV = 0.3
"""Energies per atom below this are relative to something; their ratio says nothing."""

SMALLEST_FORCE_EV_A = 1e-3

ENERGY_FACTOR = 3.0
"""Ratio of energies per atom from which on two files differ: no two functionals do."""

FORCE_FACTOR = 15.0
"""Ratio of forces from which on two files may differ in units: below it, temperatures do."""

FORCE_UNITS = {
    "kcal/mol/Å": 23.0605,
    "kJ/mol/Å": 96.485,
    "meV/Å": 1000.0,
    "Hartree/Å": 1 / 27.2114,
    "Hartree/Bohr": 1 / 51.4221,
}
"""A number in this unit over the number in eV/Å."""

FORCE_TOLERANCE = 1.4
"""By how much two files differ that were made alike."""

MOST_SOURCES = 256
"""Further files are not compared."""


@dataclass
class Sums:
    """Of the frames of one file or subset.

    Args:
        left: normal matrix of the compositions, shares of the elements; `right` its right side.
        share: sum of the shares; `energy` sum of the energies per atom.
        squares: sum of the squared force components, `components` of them.
    """

    left: np.ndarray = field(default_factory=lambda: np.zeros((N_ELEMENTS, N_ELEMENTS)))
    right: np.ndarray = field(default_factory=lambda: np.zeros(N_ELEMENTS))
    share: np.ndarray = field(default_factory=lambda: np.zeros(N_ELEMENTS))
    energy: float = 0.0
    frames: int = 0
    squares: float = 0.0
    components: int = 0


class Scales:
    """Collects what is needed to compare files while frames go by."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], Sums] = {}

    def add(self, frame: Frame) -> None:
        """One frame."""
        key = (frame.source, frame.subset)
        if key not in self._sums and len(self._sums) >= MOST_SOURCES:
            return
        sums = self._sums.setdefault(key, Sums())
        if frame.forces is not None:
            sums.squares += float((frame.forces**2).sum())
            sums.components += frame.forces.size
        if frame.energy is None:
            return
        numbers = frame.system.atomic_numbers.numpy()
        share = np.bincount(numbers, minlength=N_ELEMENTS) / len(numbers)
        elements = np.flatnonzero(share)
        sums.left[np.ix_(elements, elements)] += np.outer(share[elements], share[elements])
        sums.right += share * frame.energy / len(numbers)
        sums.share += share
        sums.energy += frame.energy / len(numbers)
        sums.frames += 1

    def findings(self) -> list[tuple[str, str, str]]:
        """(source, label, sentence) of every file whose scale is not that of the largest one."""
        if len(self._sums) < 2:
            return []
        reference = max(self._sums, key=lambda key: self._sums[key].frames)
        base, found = self._sums[reference], []
        for key, sums in self._sums.items():
            if key == reference:
                continue
            for label, ratio in (("energies", _energy(sums, base)), ("forces", _force(sums, base))):
                text = _sentence(label, ratio, _called(reference))
                if text is not None:
                    found.append((_called(key), label, text))
        return found


def _energy(sums: Sums, base: Sums) -> float:
    """Energy per atom over what the other file's energies per element give; 1 where unknown."""
    if not sums.frames or not base.frames:
        return 1.0
    elements = np.flatnonzero(sums.share + base.share)
    left = base.left[np.ix_(elements, elements)]
    inverse = np.linalg.pinv(left, rcond=1e-8, hermitian=True)
    share = sums.share[elements] / sums.frames
    if np.abs(left @ (inverse @ share) - share).max() > 0.05:
        return 1.0  # other elements, or in proportions that the other file does not tell apart
    expected = float(share @ inverse @ base.right[elements])
    own = sums.energy / sums.frames
    if min(abs(own), abs(expected)) < 1e-12 or max(abs(own), abs(expected)) < SMALLEST_EV:
        return 1.0
    return own / expected


def _force(sums: Sums, base: Sums) -> float:
    """Root mean square force over that of the other file; 1 where unknown."""
    if not sums.components or not base.components:
        return 1.0
    own, other = (np.sqrt(s.squares / s.components) for s in (sums, base))
    return 1.0 if min(own, other) < SMALLEST_FORCE_EV_A else float(own / other)


def _sentence(label: str, ratio: float, reference: str) -> str | None:
    """What a ratio says; None when it says nothing."""
    large = max(abs(ratio), 1 / abs(ratio)) if ratio else np.inf
    if label == "forces":
        name = min(FORCE_UNITS, key=lambda key: abs(np.log(ratio / FORCE_UNITS[key])))
        far = abs(np.log(ratio / FORCE_UNITS[name])) > np.log(FORCE_TOLERANCE)
        if large < FORCE_FACTOR or far:
            return None
        return f"its forces are {ratio:.3g} times those of {reference}, perhaps in {name}"
    if large < ENERGY_FACTOR and ratio > 0:
        return None
    why = (guess(abs(ratio), label) if ratio else "") or ", so they have another origin or unit"
    return f"its {label} per atom are {ratio:.4g} times those of {reference}{why}"


def _called(key: tuple[str, str]) -> str:
    source, subset = key
    return f"{source} ({subset})" if subset else source
