"""Formation energies and hulls against systems that can be worked out by hand."""

from collections.abc import Callable
from types import ModuleType

import pytest
from pymatgen.core import Composition


@pytest.fixture(scope="module")
def hull(recipe: Callable[[str], ModuleType]) -> ModuleType:
    return recipe("seed_hull")


@pytest.fixture
def known(hull: ModuleType) -> list:
    """Na and Cl; NaCl 1 eV/atom below them by both; Na3Cl on the tie line to Na."""
    energies = {"Na": (-1.0, -1.2), "Cl": (-2.0, -1.8), "NaCl": (-2.5, -2.5)}
    energies["Na3Cl"] = (-1.75, -1.85)
    return [hull.Phase(Composition(name), *pair) for name, pair in energies.items()]


def test_formation_energy_of_salt(hull: ModuleType, known: list) -> None:
    references = hull.reference_energies(known, hull.teacher)
    assert references == {"Na": -1.0, "Cl": -2.0}
    salt = next(phase for phase in known if phase.composition == Composition("NaCl"))
    assert hull.formation_energy(salt, references, hull.teacher) == pytest.approx(-1.0)


def test_the_lowest_form_of_an_element_is_its_reference(hull: ModuleType, known: list) -> None:
    other = hull.Phase(Composition("Na4"), -1.5, -0.5)
    assert hull.reference_energies([*known, other], hull.teacher)["Na"] == -1.5
    assert hull.reference_energies([*known, other], hull.model)["Na"] == -1.2


def test_formation_agreement(hull: ModuleType, known: list) -> None:
    # elements by the model: Na -1.2, Cl -1.8.  NaCl2: mean -1.6667 and -1.6
    held_out = [
        hull.Phase(Composition("NaCl2"), -2.0, -2.0),
        hull.Phase(Composition("Na2Cl2"), -2.5, -2.4),
        hull.Phase(Composition("Na"), -0.9, -0.9),
        hull.Phase(Composition("KCl"), -2.0, -2.0),
    ]
    found = hull.formation_agreement(known, held_out)
    assert found["compounds"] == 2
    assert found["mae_meV_per_atom"] == pytest.approx(1e3 * (1 / 15 + 0.1) / 2)
    label, predicted = [-1 / 3, -1.0], [-0.4, -0.9]
    left = sum((a - b) ** 2 for a, b in zip(label, predicted, strict=True))
    assert found["r2"] == pytest.approx(1 - left / (2 * (1 / 3) ** 2))


def test_hull_agreement_counts_signs(hull: ModuleType, known: list) -> None:
    # between NaCl and Cl the hull at NaCl3 is at -2.25 (teacher) and -2.15 (model)
    held_out = [
        hull.Phase(Composition("NaCl3"), -2.35, -2.20),  # below by both
        hull.Phase(Composition("NaCl3"), -2.30, -2.10),  # below by the teacher alone
        hull.Phase(Composition("NaCl3"), -2.20, -2.14),  # above by both
        hull.Phase(Composition("Cl"), -3.0, -3.0),  # an element is not judged
        hull.Phase(Composition("KCl"), -3.0, -3.0),  # K is not known
    ]
    found = hull.hull_agreement(known, held_out)
    assert (found["compounds"], found["systems"]) == (3, 1)
    assert found["same_sign"] == pytest.approx(2 / 3)
    assert (found["below_by_both"], found["below_by_chgnet"], found["below_by_model"]) == (1, 2, 1)
    # heights: -0.10, -0.05, 0.05 and -0.05, 0.05, 0.01
    assert found["mae_meV_per_atom"] == pytest.approx(1e3 * (0.05 + 0.10 + 0.04) / 3)


def test_a_system_with_one_known_compound_is_not_judged(hull: ModuleType, known: list) -> None:
    held_out = [hull.Phase(Composition("NaCl3"), -2.35, -2.20)]
    assert hull.hull_agreement(known[:3], held_out) == {"compounds": 0}


def test_nothing_held_out(hull: ModuleType, known: list) -> None:
    assert hull.formation_agreement(known, []) == {"compounds": 0}
    assert hull.hull_agreement(known, []) == {"compounds": 0}
