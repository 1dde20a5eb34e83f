"""Corrections of our entries are what pymatgen's scheme gives to a calculation of the project."""

from __future__ import annotations

import pytest
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry
from screened import results, row

from dpa4sim.errors import DataError
from dpa4sim.screen.corrections import adjustment, correct
from dpa4sim.screen.hull import hull_table
from dpa4sim.screen.index import Phase
from dpa4sim.screen.references import References

POTCARS = {"Li": "Li_sv", "Fe": "Fe_pv", "O": "O", "Na": "Na_pv", "Cl": "Cl", "Cu": "Cu_pv"}
POTCARS |= {"S": "S", "F": "F", "Al": "Al"}


def calculated(formula: str, u_values: dict[str, float]) -> ComputedEntry:
    """An entry as a calculation of the project leaves it."""
    composition = Composition(formula)
    symbols = [f"PBE {POTCARS[element.symbol]} 06Sep2000" for element in composition]
    parameters = {"run_type": "GGA+U" if u_values else "GGA", "hubbards": u_values}
    parameters |= {"potcar_symbols": symbols, "software": "vasp"}
    data = {"oxide_type": "oxide"} if "O" in formula else {}
    return ComputedEntry(composition, -10.0, parameters=parameters, data=data)


@pytest.mark.parametrize(
    ("formula", "u_values"),
    [
        ("Fe2O3", {"Fe": 5.3}),
        ("LiFeO2", {"Fe": 5.3}),
        ("Li2O", {}),
        ("NaCl", {}),
        ("FeS2", {}),
        ("FeF3", {"Fe": 5.3}),
        ("CuAl2", {}),
        ("Fe", {}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of pymatgen, about oxidation states that it cannot guess
def test_as_for_a_calculation_of_the_project(formula: str, u_values: dict[str, float]) -> None:
    entry = calculated(formula, u_values)
    processed = MaterialsProject2020Compatibility().process_entry(entry)
    assert processed is not None
    assert correct(Composition(formula), -10.0) == pytest.approx(processed.correction)
    twice = Composition(formula) * 2
    assert correct(twice, -20.0) == pytest.approx(2 * processed.correction)


def test_corrections_do_something() -> None:
    assert correct(Composition("Fe2O3"), -10.0) < -5
    assert correct(Composition("CuAl2"), -10.0) == 0


def peroxide() -> Structure:
    """Two oxygen atoms 1.45 Å apart in a box with two of lithium."""
    return Structure(
        Lattice.cubic(6), ["Li", "Li", "O", "O"], [[0, 0, 0], [3, 3, 3], [0, 3, 0], [0, 3, 1.45]],
        coords_are_cartesian=True,
    )  # fmt: skip


def test_bonds_decide_between_oxide_and_peroxide() -> None:
    apart = peroxide()
    apart.translate_sites([3], [0, 0, 0.25])
    bound, free = (
        correct(each.composition, -10.0, lambda each=each: each) for each in (peroxide(), apart)
    )
    assert bound == pytest.approx(2 * -0.465)
    assert free == pytest.approx(2 * -0.687)


def test_a_calculation_outside_of_the_scheme_is_refused() -> None:
    entry = ComputedEntry("Fe2O3", -10.0, parameters={"run_type": "r2SCAN"})
    with pytest.raises(DataError, match=r"has no correction of the scheme mp2020: .*r2SCAN"):
        adjustment(entry)


def test_the_hull_is_of_corrected_energies_and_shows_both() -> None:
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = AseAtomsAdaptor.get_atoms(peroxide())
    references = References()
    references.add(Phase.of("li", Composition("Li"), -1.9))
    references.add(Phase.of("o", Composition("O2"), -9.8))
    table = hull_table(results([row(0, atoms, -19.0)]), references, corrections="mp2020")
    (found,) = table.to_pylist()
    assert found["energy_per_atom"] == pytest.approx(-19 / 4)
    assert found["correction_per_atom"] == pytest.approx(-0.465 / 2)
    ends = (-1.9 - 4.9) / 2
    assert found["formation_energy"] == pytest.approx(-19 / 4 - 0.465 / 2 - ends)


def test_references_without_stored_corrections_get_the_same(tmp_path) -> None:
    from screened import MODEL, plain, write_entries

    from dpa4sim.screen.references import read_references

    structured = ComputedStructureEntry(peroxide(), -19.0, parameters={"model_hash": MODEL})
    path = write_entries(tmp_path / "refs.json", [structured, plain("Fe2O3", -30.0, "iron")])
    found = {
        phase.formula: phase.energy_per_atom
        for phase in read_references([path], model_hash=MODEL, corrections="mp2020")
    }
    assert found["Li2O2"] == pytest.approx((-19.0 - 2 * 0.465) / 4)
    assert found["Fe2O3"] == pytest.approx((-30.0 + correct(Composition("Fe2O3"), -30.0)) / 5)
