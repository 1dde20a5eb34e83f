"""Distances from the hull against pymatgen's diagram of everything at once, and by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest
from ase import Atoms
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from screened import alloys, at_best_volume, results, row

from dpa4sim.errors import ConfigError
from dpa4sim.screen.hull import HULL, hull_table, reference_phases
from dpa4sim.screen.index import Phase, PhaseIndex
from dpa4sim.screen.references import References

EXACT = 1e-6
"""eV/atom: what the issue asks for."""

METALS = ("Cu", "Au", "Pd")


def index(*phases: tuple[str, str, float]) -> References:
    """Phases by name, formula and energy of that formula."""
    references = References()
    for name, formula, energy in phases:
        references.add(Phase.of(name, Composition(formula), energy))
    return references


def crystal(formula: str, spacing: float = 3.0) -> Atoms:
    """Some atoms in a box: the hull does not look at where they are."""
    atoms = Atoms(formula, cell=[20, 20, 20], pbc=True)
    atoms.positions[:, 0] = [spacing * k for k in range(len(atoms))]
    return atoms


def salt(energies: Sequence[tuple[str, float]], **others: object) -> pa.Table:
    return results([row(i, crystal(f), e, **others) for i, (f, e) in enumerate(energies)])


def by_name(table: pa.Table) -> dict[str, dict]:
    return {each["name"]: each for each in table.to_pylist()}


@pytest.fixture(scope="module")
def metals() -> list[tuple[str, Atoms, float]]:
    """Alloys of three metals, each at its best volume by EMT."""
    return [(name, *at_best_volume(atoms)) for name, atoms in alloys(METALS)]


def test_the_hull_of_an_alloy_system_is_that_of_one_diagram(
    metals: list[tuple[str, Atoms, float]],
) -> None:
    known = {f"{metal}-fcc" for metal in METALS} | {"CuAu3-L12", "CuPd-B2"}
    references = References()
    entries = {
        name: PDEntry(Composition(atoms.get_chemical_formula()), energy, name=name)
        for name, atoms, energy in metals
    }
    for name in known:
        references.add(Phase.of(name, entries[name].composition, entries[name].energy))
    rows = [
        row(i, atoms, energy, name=name)
        for i, (name, atoms, energy) in enumerate(metals)
        if name not in known
    ]
    found = by_name(hull_table(results(rows), references))
    of_known = PhaseDiagram([entries[name] for name in known])
    of_all = PhaseDiagram(list(entries.values()))
    assert len(found) == len(metals) - len(known) >= 20
    assert any(each["e_above_hull_reference"] < -EXACT for each in found.values())
    assert any(each["stable"] for each in found.values())
    assert any(each["e_above_hull_self"] > EXACT for each in found.values())
    for name, each in found.items():
        entry = entries[name]
        shares, above = of_known.get_decomp_and_e_above_hull(entry, allow_negative=True)
        assert each["e_above_hull_reference"] == pytest.approx(above, abs=EXACT)
        assert names(each["decomposition_reference"]) == {e.name: n for e, n in shares.items()}
        shares, above = of_all.get_decomp_and_e_above_hull(entry, check_stable=False)
        assert each["e_above_hull_self"] == pytest.approx(above, abs=EXACT)
        assert names(each["decomposition"]) == {e.name: n for e, n in shares.items()}
        form = of_known.get_form_energy_per_atom(entry)
        assert each["formation_energy"] == pytest.approx(form, abs=EXACT)
        assert each["stable"] == (entry in of_all.stable_entries)


def names(said: str) -> dict[str, object]:
    """`0.25 Cu (a) + 0.75 Au (b)` as shares by name."""
    parts = [part.split(" ", 2) for part in said.split(" + ")]
    return {name.strip("()"): pytest.approx(float(share), abs=1e-4) for share, _, name in parts}


def test_the_order_of_the_rows_changes_nothing(metals: list[tuple[str, Atoms, float]]) -> None:
    rows = [row(i, atoms, energy, name=name) for i, (name, atoms, energy) in enumerate(metals)]
    references = index(("Cu", "Cu", 0.0), ("Au", "Au", 0.0), ("Pd", "Pd", 0.0))
    first = hull_table(results(rows), references)
    random.Random(3).shuffle(rows)
    assert hull_table(results(rows), references).equals(first)
    assert first["id"].to_pylist() == list(range(len(rows)))


def test_a_salt_by_hand() -> None:
    # between Na (-1) and Cl (-2): NaCl at -2.5, 1 eV/atom below the line; Na3Cl 0.05 above the
    # line of Na and NaCl at -1.75
    references = index(("na", "Na", -1.0), ("cl", "Cl2", -4.0), ("nacl", "NaCl", -5.0))
    table = salt([("Na3Cl", -4 * 1.70), ("NaCl3", -4 * 2.35), ("Na2Cl2", -4 * 2.4)])
    found = hull_table(table, references).to_pylist()
    assert [each["e_above_hull_reference"] for each in found] == pytest.approx([0.05, -0.1, 0.1])
    assert [each["e_above_hull_self"] for each in found] == pytest.approx([0.05, 0.0, 0.1])
    assert [each["formation_energy"] for each in found] == pytest.approx([-0.45, -0.6, -0.9])
    assert [each["rank"] for each in found] == [2, 1, 3]
    assert [each["stable"] for each in found] == [False, True, False]
    assert found[0]["decomposition"] == "0.5 Na (na) + 0.5 NaCl (nacl)"
    assert found[1]["decomposition"] == "1 NaCl3 (c1)"
    assert found[1]["decomposition_reference"] == "0.5 Cl2 (cl) + 0.5 NaCl (nacl)"
    assert found[2]["formula"] == "NaCl"


def test_a_candidate_element_below_its_reference_lifts_the_others() -> None:
    references = index(("na", "Na", -1.0), ("cl", "Cl2", -4.0))
    found = hull_table(salt([("Na2", -2.4), ("NaCl", -3.4)]), references).to_pylist()
    assert found[0]["e_above_hull_reference"] == pytest.approx(-0.2)
    assert found[1]["e_above_hull_reference"] == pytest.approx(-0.2)
    # the other end of the line is at -1.2 now, its middle at -1.6
    assert found[1]["e_above_hull_self"] == pytest.approx(0.0)
    higher = hull_table(salt([("Na2", -2.4), ("NaCl", -3.1)]), references).to_pylist()
    assert higher[1]["e_above_hull_reference"] == pytest.approx(-0.05)
    assert higher[1]["e_above_hull_self"] == pytest.approx(0.05)


def test_missing_references_are_named_and_leave_nulls() -> None:
    found = hull_table(salt([("NaCl", -5.0), ("Na", -0.9)]), index(("na", "Na", -1.0))).to_pylist()
    assert found[0]["missing_references"] == "Cl"
    nulls = ("formation_energy", "e_above_hull_reference", "e_above_hull_self", "rank")
    assert all(found[0][key] is None for key in nulls)
    assert not found[0]["stable"]
    assert found[0]["energy_per_atom"] == -2.5
    assert found[1]["missing_references"] == ""
    assert found[1]["e_above_hull_self"] == pytest.approx(0.1)


def test_candidates_may_bring_the_elements_themselves() -> None:
    table = salt([("Na", -1.0), ("Cl2", -4.0), ("NaCl", -5.0), ("NaCl3", -9.0)])
    found = hull_table(table, PhaseIndex()).to_pylist()
    assert [each["e_above_hull_self"] for each in found] == pytest.approx([0, 0, 0, 0])
    assert all(each["formation_energy"] is None for each in found)
    assert found[3]["missing_references"] == "Cl, Na"
    dearer = salt([("Na", -1.0), ("Cl2", -4.0), ("NaCl", -5.0), ("NaCl3", -8.8)])
    above = hull_table(dearer, PhaseIndex())["e_above_hull_self"].to_pylist()
    assert above[3] == pytest.approx(0.05)


@pytest.mark.parametrize("flag", ["collapsed", "exploded", "fragmented"])
def test_the_unsound_neither_compete_nor_rank(flag: str) -> None:
    references = index(("na", "Na", -1.0), ("cl", "Cl2", -4.0))
    rows = [row(0, crystal("NaCl"), -500.0, flags=[flag]), row(1, crystal("NaCl"), -4.0)]
    found = hull_table(results(rows), references).to_pylist()
    assert (found[0]["rank"], found[0]["stable"]) == (None, False)
    assert found[0]["e_above_hull_reference"] == pytest.approx(-248.5)
    assert (found[1]["rank"], found[1]["stable"]) == (1, True)


@pytest.mark.parametrize("status", ["duplicate", "invalid", "not_finite"])
def test_rows_without_an_energy_stay_in_the_table(status: str) -> None:
    rows = [row(0, crystal("NaCl"), None, status=status, reason="so it is")]
    rows.append(row(1, crystal("NaCl"), -4.0, status="max_steps"))
    found = hull_table(results(rows), index(("na", "Na", -1.0), ("cl", "Cl2", -4.0))).to_pylist()
    assert (found[0]["status"], found[0]["reason"], found[0]["rank"]) == (status, "so it is", None)
    assert found[0]["energy_per_atom"] is None
    assert (found[1]["rank"], found[1]["stable"]) == (1, True)


def test_no_candidates_at_all() -> None:
    table = hull_table(results([]), References())
    assert table.num_rows == 0
    assert table.schema.equals(HULL)


def test_unknown_corrections_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"corrections='mp2021' is not known\. Valid: none"):
        hull_table(results([]), References(), corrections="mp2021")


def test_relaxed_elements_become_references() -> None:
    rows = [row(0, crystal("Na2"), -2.0), row(1, crystal("Cl2"), -4.0, flags=["exploded"])]
    (phase,) = reference_phases(results(rows))
    assert (phase.name, phase.formula, phase.energy_per_atom) == ("c0", "Na", -1.0)


def test_only_the_lowest_of_a_composition_is_kept_and_names_break_ties() -> None:
    phases = [("b", "Na2Cl2", -10.0), ("c", "NaCl", -4.0), ("a", "NaCl", -5.0)]
    for order in (phases, phases[::-1]):
        (kept,) = index(*order)
        assert (kept.name, kept.energy_per_atom) == ("a", -2.5)


def test_an_index_finds_the_same_by_subsets_and_by_looking_at_everything() -> None:
    few = index(("na", "Na", -1.0), ("cl", "Cl2", -4.0), ("nacl", "NaCl", -5.0), ("k", "K", -1.0))
    wide = ["Na", "Cl", "F", "Br", "I", "Li"]
    assert [phase.name for phase in few.within(wide)] == ["cl", "na", "nacl"]
    assert [phase.name for phase in few.within(["Na", "Cl"])] == ["cl", "na", "nacl"]
    assert few.missing(wide) == ["Br", "F", "I", "Li"]


def test_the_corrections_and_their_version_are_in_the_table() -> None:
    from importlib.metadata import version

    found = hull_table(results([]), References(), corrections="mp2020").schema.metadata
    assert found == {b"corrections": b"mp2020", b"pymatgen": version("pymatgen").encode()}


def test_random_systems_of_up_to_five_elements_agree_with_one_diagram() -> None:
    rng = random.Random(11)
    symbols = ["Li", "Fe", "P", "O", "F"]

    def compound(name: str) -> PDEntry:
        chosen = rng.sample(symbols, rng.randint(2, 5))
        composition = Composition({symbol: rng.randint(1, 4) for symbol in chosen})
        return PDEntry(composition, composition.num_atoms * rng.uniform(-1.5, 0.2), name=name)

    known = [PDEntry(Composition(symbol), 0.1, name=symbol) for symbol in symbols]
    known += [compound(f"r{i}") for i in range(60)]
    new = [compound(f"c{i}") for i in range(60)]
    references = References()
    for entry in known:
        references.add(Phase.of(entry.name, entry.composition, entry.energy))
    rows = [
        row(i, crystal(entry.composition.formula.replace(" ", "")), entry.energy)
        for i, entry in enumerate(new)
    ]
    found = hull_table(results(rows), references).to_pylist()
    of_known, of_all = PhaseDiagram(known), PhaseDiagram([*known, *new])
    assert 3 < sum(each["stable"] for each in found) < 30
    for entry, each in zip(new, found, strict=True):
        above = of_known.get_e_above_hull(entry, allow_negative=True, check_stable=False)
        assert each["e_above_hull_reference"] == pytest.approx(above, abs=EXACT)
        above = of_all.get_e_above_hull(entry, check_stable=False)
        assert each["e_above_hull_self"] == pytest.approx(above, abs=EXACT)
