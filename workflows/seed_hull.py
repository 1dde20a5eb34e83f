"""Formation energies and convex hulls by a model and by its teacher, on the same structures.

What was trained on is known: its phases make the hull, each model's own energies its own hull.  A
held-out compound lies above it or below it, and that sign is what a search for new crystals asks.
`seed_card.py` puts the agreement into the model card.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

LEAST_KNOWN = 2  # known compounds, besides the elements, of a system that is judged


@dataclass(frozen=True)
class Phase:
    """One relaxed compound; energies in eV/atom, of the same geometry."""

    composition: Composition
    teacher: float
    model: float

    @property
    def elements(self) -> frozenset[str]:
        """Its chemical system."""
        return frozenset(element.symbol for element in self.composition)


type Side = Callable[[Phase], float]


def teacher(phase: Phase) -> float:
    """The energy by the teacher, eV/atom."""
    return phase.teacher


def model(phase: Phase) -> float:
    """The energy by the model, eV/atom."""
    return phase.model


def reference_energies(known: Sequence[Phase], energy: Side) -> dict[str, float]:
    """The lowest energy of each element, eV/atom."""
    lowest: dict[str, float] = {}
    for phase in known:
        if len(phase.elements) == 1:
            (symbol,) = phase.elements
            lowest[symbol] = min(energy(phase), lowest.get(symbol, np.inf))
    return lowest


def formation_energy(phase: Phase, references: dict[str, float], energy: Side) -> float:
    """Energy less that of the elements, eV/atom."""
    share = phase.composition.fractional_composition.get_el_amt_dict()
    return energy(phase) - sum(part * references[symbol] for symbol, part in share.items())


def formation_agreement(known: Sequence[Phase], held_out: Sequence[Phase]) -> dict[str, float]:
    """How the formation energies of held-out compounds compare: number, meV/atom, R^2."""
    sides = [(each, reference_energies(known, each)) for each in (teacher, model)]
    compounds = [
        phase
        for phase in held_out
        if len(phase.elements) > 1 and all(phase.elements <= set(found) for _, found in sides)
    ]
    if not compounds:
        return {"compounds": 0}
    label, predicted = (
        np.array([formation_energy(phase, found, energy) for phase in compounds])
        for energy, found in sides
    )
    spread = np.square(label - label.mean()).sum()
    return {
        "compounds": len(compounds),
        "mae_meV_per_atom": 1e3 * float(np.abs(predicted - label).mean()),
        "r2": float(1 - np.square(predicted - label).sum() / spread) if spread else float("nan"),
    }


def hull_distance(phase: Phase, system: Sequence[Phase], energy: Side) -> float:
    """Height of a phase above the hull of others, eV/atom; negative below it."""
    entries = [PDEntry(each.composition, energy(each) * each.composition.num_atoms)
               for each in system]  # fmt: skip
    hull = PhaseDiagram(entries).get_hull_energy_per_atom(phase.composition)
    return energy(phase) - hull


def hull_agreement(known: Sequence[Phase], held_out: Sequence[Phase]) -> dict[str, float]:
    """Whether both find the same held-out compounds below the hull of what is known.

    Only systems whose elements and `LEAST_KNOWN` compounds are known are judged.
    """
    distances, systems = [], set()
    for phase in held_out:
        system = [each for each in known if each.elements <= phase.elements]
        single = {each.elements for each in system if len(each.elements) == 1}
        n_compounds = sum(len(each.elements) > 1 for each in system)
        if (
            len(phase.elements) < 2
            or len(single) < len(phase.elements)
            or n_compounds < LEAST_KNOWN
        ):
            continue
        distance = partial(hull_distance, phase, system)
        distances.append((distance(teacher), distance(model)))
        systems.add(phase.elements)
    if not distances:
        return {"compounds": 0}
    label, predicted = np.array(distances).T
    below, found = label < 0, predicted < 0
    return {
        "compounds": len(label),
        "systems": len(systems),
        "same_sign": float((below == found).mean()),
        "below_by_both": int((below & found).sum()),
        "below_by_chgnet": int(below.sum()),
        "below_by_model": int(found.sum()),
        "mae_meV_per_atom": 1e3 * float(np.abs(predicted - label).mean()),
    }
