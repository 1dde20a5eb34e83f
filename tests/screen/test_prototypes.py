"""The table of prototypes against symmetry, chemistry and pymatgen's own collection."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pymatgen.analysis.prototypes
import pytest
import spglib
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from pymatgen.core import Composition, Structure

from dpa4sim.errors import ConfigError
from dpa4sim.screen.dedup import equal, fingerprint
from dpa4sim.screen.prototypes import Prototype, prototype, prototypes, skeleton
from dpa4sim.screen.symmetry import space_group

EXACT = 1e-3  # Å: the table's rounding, not a tolerance for physics
NAMES = list(prototypes())
# Sums of covalent radii: vanadyl V=O in the table, and the ionic bonds of heavy atoms
SHORTEST, LONGEST = 0.70, 1.27
# Å^3 per atom: Li2O and boron's neighbours, BiI3 and tetradymite
SMALLEST, LARGEST = 7.0, 45.0


def formula(name: str) -> str:
    return Composition(skeleton(name)[0].get_chemical_formula()).reduced_formula


def test_there_are_many_and_names_are_words() -> None:
    assert len(NAMES) >= 60
    assert len(set(NAMES)) == len(NAMES)
    assert all(name.replace("_", "").isalnum() and name == name.lower() for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_space_group_by_two_programs(name: str) -> None:
    """Both of the known compound and of the bare slots: no slot hides behind an equal element."""
    atoms, slots = skeleton(name)
    bare = atoms.copy()
    bare.numbers = [slot + 1 for slot in slots]
    number = prototype(name).space_group
    assert space_group(bare, EXACT) == number
    cell = (bare.cell.array, bare.get_scaled_positions(), bare.numbers)
    assert spglib.get_symmetry_dataset(cell, symprec=EXACT).number == number
    assert len(spglib.find_primitive(cell, symprec=EXACT)[2]) == len(bare)


@pytest.mark.parametrize("name", NAMES)
def test_contacts_and_volume_of_the_known_compound(name: str) -> None:
    atoms, _ = skeleton(name)
    first, second, distance = neighbor_list("ijd", atoms, 7.0)
    radii = covalent_radii[atoms.numbers]
    assert SHORTEST < (distance / (radii[first] + radii[second])).min() < LONGEST
    assert SMALLEST < atoms.get_volume() / len(atoms) < LARGEST
    assert np.linalg.det(atoms.cell.array) > 0


# Formula and atoms of the primitive cell, from textbooks
CELLS = {
    "rocksalt": ("NaCl", 2),
    "rutile": ("TiO2", 6),
    "anatase": ("TiO2", 6),
    "corundum": ("Al2O3", 10),
    "perovskite": ("SrTiO3", 5),
    "perovskite_orthorhombic": ("CaTiO3", 20),
    "spinel": ("MgAl2O4", 14),
    "olivine": ("Mg2SiO4", 28),
    "garnet": ("Y3Al5O12", 80),
    "pyrochlore": ("Y2Ti2O7", 22),
    "delafossite": ("AlCuO2", 4),
    "zircon": ("ZrSiO4", 12),
    "scheelite": ("CaWO4", 12),
    "k2nif4": ("K2NiF4", 7),
    "ruddlesden_popper_2": ("Sr3Ti2O7", 12),
    "bixbyite": ("Y2O3", 40),
    "laves_c14": ("MgZn2", 12),
    "a15": ("Nb3Sn", 8),
    "thorium_manganese12": ("ThMn12", 13),
    "lithium_manganate": ("Li2MnO3", 12),
    "pyroxene": ("NaAlSi2O6", 20),
    "heusler": ("MnAlCu2", 4),
    "max_211": ("Cr2CAl", 8),
}


@pytest.mark.parametrize(("name", "known"), CELLS.items())
def test_formula_and_size(name: str, known: tuple[str, int]) -> None:
    assert Composition(formula(name)) == Composition(known[0])
    assert len(skeleton(name)[0]) == known[1]


# First neighbours of another element, as every textbook draws them
COORDINATION = {
    "rocksalt": {"Na": 6, "Cl": 6},
    "cesium_chloride": {"Cs": 8, "Cl": 8},
    "zincblende": {"Zn": 4, "S": 4},
    "wurtzite": {"Zn": 4, "S": 4},
    "nickel_arsenide": {"Ni": 6, "As": 6},
    "fluorite": {"Ca": 8, "F": 4},
    "rutile": {"Ti": 6, "O": 3},
    "anatase": {"Ti": 6, "O": 3},
    "cadmium_iodide": {"Cd": 6, "I": 3},
    "molybdenite": {"Mo": 6, "S": 3},
    "quartz": {"Si": 4, "O": 2},
    "cuprite": {"Cu": 2, "O": 4},
    "cooperite": {"Pt": 4, "S": 4},
    "tenorite": {"Cu": 4, "O": 4},
    "brookite": {"Ti": 6, "O": 3},
    "corundum": {"Al": 6, "O": 4},
    "rhenium_trioxide": {"Re": 6, "O": 2},
    "aluminium_chloride": {"Al": 6, "Cl": 2},
    "bismuth_iodide": {"Bi": 6, "I": 2},
    "perovskite": {"Sr": 12, "Ti": 6},
    "perovskite_hexagonal": {"Ba": 12, "Ni": 6},
    "antiperovskite": {"Cl": 12, "O": 6},
    "ilmenite": {"Ti": 6},
    "calcite": {"Ca": 6, "C": 3},
    "delafossite": {"Cu": 2, "Al": 6},
    "layered_rocksalt": {"Na": 6, "Fe": 6},
    "ordered_rocksalt": {"Li": 6, "Fe": 6},
    "chalcopyrite": {"Cu": 4, "Fe": 4},
    "spinel": {"Mg": 4, "Al": 6, "O": 4},
    "scheelite": {"Ca": 8, "W": 4},
    "zircon": {"Zr": 8, "Si": 4},
    "wolframite": {"Mg": 6},
    "enargite": {"Cu": 4, "As": 4},
    "sulvanite": {"Cu": 4, "V": 4},
    "infinite_layer": {"Ca": 8, "Cu": 4},
    "pyrochlore": {"Ti": 6, "Y": 8},
    "trirutile": {"Zn": 6, "Sb": 6},
    "k2ptcl6": {"K": 12, "Pt": 6},
    "silicon_nitride": {"Si": 4, "N": 3},
    "laves_c15": {"Mg": 12},
    "copper3_gold": {"Au": 12},
    "a15": {"Sn": 12},
    "half_heusler": {"Ni": 8},
    "aluminium_diboride": {"Al": 12},
    "uranium_chloride": {"La": 9},
    "lithium_manganate": {"Mn": 6, "Li": 6},
    "pyroxene": {"Si": 4, "Al": 6},
    "intercalated_layers": {"Li": 6, "Ti": 6},
}


@pytest.mark.parametrize(("name", "numbers"), COORDINATION.items())
def test_coordination_numbers(name: str, numbers: dict[str, int]) -> None:
    atoms, slots = skeleton(name)
    slot = np.array(slots)
    sign = np.array([each.sign for each in prototype(name).slots])[slot]
    first, second, distance = neighbor_list("ijd", atoms, 6.0)
    for symbol, number in numbers.items():
        for atom in np.flatnonzero(atoms.symbols == symbol):
            beside = (slot[second] != slot[atom]) & (sign[second] * sign[atom] < 1)
            others = distance[(first == atom) & beside]
            assert int((others < 1.2 * others.min()).sum()) == number, symbol


# Ours -> pymatgen's label; other decorations and lattice parameters, the same positions.  Its
# anatase (Ti with 4 O), tenorite (Cu-O 1.67 Å) and brookite (Ti-O 1.55 Å) are not those crystals,
# and its cooperite has a cell of twice the area: these are checked by coordination only.
SAME = {
    "rocksalt": "AB_cF8_225_a_b",
    "cesium_chloride": "AB_cP2_221_b_a",
    "zincblende": "AB_cF8_216_c_a",
    "wurtzite": "AB_hP4_186_b_b",
    "nickel_arsenide": "AB_hP4_194_c_a",
    "tungsten_carbide": "AB_hP2_187_d_a",
    "litharge": "AB_tP4_129_a_c",
    "millerite": "AB_hR6_160_b_b",
    "boron_nitride": "AB_hP4_194_c_d",
    "iron_silicide": "AB_cP8_198_a_a",
    "zintl": "AB_cF16_227_a_b",
    "copper_gold": "AB_tP2_123_a_d",
    "copper_titanium": "AB_tP4_129_c_c",
    "gold_cadmium": "AB_oP4_51_e_f",
    "chromium_boride": "AB_oC8_63_c_c",
    "fluorite": "AB2_cF12_225_a_c",
    "cuprite": "A2B_cP6_224_b_a",
    "rutile": "A2B_tP6_136_f_a",
    "cadmium_iodide": "AB2_hP3_164_a_d",
    "molybdenite": "AB2_hP6_194_c_f",
    "molybdenum_disilicide": "AB2_tI6_139_a_e",
    "laves_c14": "AB2_hP12_194_f_ah",
    "laves_c15": "A2B_cF24_227_d_a",
    "aluminium_copper": "A2B_tI12_140_h_a",
    "pyrite": "AB2_cP12_205_a_c",
    "calcium_chloride": "AB2_oP6_58_a_g",
    "aluminium_diboride": "AB2_hP3_191_a_d",
    "copper_antimonide": "A2B_tP6_129_ac_c",
    "chromium_disilicide": "AB2_hP9_180_d_j",
    "baddeleyite": "A2B_mP12_14_2e_e",
    "zirconium_disilicide": "A2B_oC12_63_2c_c",
    "titanium_disilicide": "A2B_oF24_70_e_a",
    "nickel_indium": "AB2_hP6_194_c_ad",
    "rhenium_trioxide": "A3B_cP4_221_d_a",
    "bismuth_iodide": "AB3_hR8_148_c_f",
    "aluminium_chloride": "AB3_mC16_12_g_ij",
    "lithium_nitride": "A3B_hP4_191_bc_a",
    "sodium_arsenide": "AB3_hP8_194_c_bf",
    "bismuth_fluoride": "AB3_cF16_225_a_bc",
    "skutterudite": "A3B_cI32_204_g_c",
    "copper3_gold": "AB3_cP4_221_a_c",
    "nickel3_tin": "A3B_hP8_194_h_c",
    "titanium_aluminium3": "A3B_tI8_139_bd_a",
    "a15": "A3B_cP8_223_c_a",
    "cementite": "AB3_oP16_62_c_cd",
    "nickel4_molybdenum": "AB4_tI10_87_a_h",
    "barium_aluminium4": "A4B_tI10_139_de_a",
    "calcium_copper5": "AB5_hP6_191_a_cg",
    "calcium_hexaboride": "A6B_cP7_221_f_a",
    "thorium_manganese12": "A12B_tI26_139_fij_a",
    "nickel2_aluminium3": "A3B2_hP5_164_ad_d",
    "corundum": "A2B3_hR10_167_c_e",
    "stibnite": "A3B2_oP20_62_3c_2c",
    "tetradymite": "A2B3_hR5_166_c_ac",
    "perovskite": "AB3C_cP5_221_a_c_b",
    "perovskite_orthorhombic": "AB3C_oP20_62_c_cd_a",
    "ilmenite": "AB3C_hR10_148_c_f_c",
    "calcite": "ABC3_hR10_167_a_b_e",
    "layered_rocksalt": "ABC2_hR4_166_a_b_c",
    "chalcopyrite": "ABC2_tI16_122_a_b_d",
    "infinite_layer": "ABC2_tP4_123_d_a_f",
    "matlockite": "ABC_tP6_129_c_a_c",
    "half_heusler": "ABC_cF12_216_b_c_a",
    "heusler": "AB2C_cF16_225_a_c_b",
    "spinel": "A2BC4_cF56_227_d_a_e",
    "thiogallate": "A2BC4_tI14_82_bc_a_g",
    "zircon": "A4BC_tI24_141_h_b_a",
    "enargite": "AB3C4_oP16_31_a_ab_2ab",
    "sulvanite": "A3B4C_cP8_215_d_e_a",
    "stannite": "A2BC4D_tI16_121_d_a_i_b",
    "max_211": "ABC2_hP8_194_d_a_f",
    "quartz": "A2B_hP9_152_c_a",
}


@pytest.fixture(scope="module")
def collection() -> dict[str, list[Structure]]:
    """What ships with pymatgen, by label (labels are not unique)."""
    path = Path(pymatgen.analysis.prototypes.__file__).parent / "aflow_prototypes.json.gz"
    with gzip.open(path, "rt") as stream:
        entries = json.load(stream)
    found: dict[str, list[Structure]] = {}
    for entry in entries:
        label = entry["tags"]["aflow"]
        if label in SAME.values():
            found.setdefault(label, []).append(Structure.from_dict(entry["snl"]))
    return found


def with_elements_of(structure: Structure, atoms: Atoms) -> list[Atoms]:
    """Their structure with our elements: every matching of the numbers of atoms."""
    theirs = Atoms(
        structure.atomic_numbers,
        scaled_positions=structure.frac_coords,
        cell=structure.lattice.matrix,
        pbc=True,
    )
    ours = sorted(set(atoms.get_chemical_symbols()))
    kinds = sorted(set(theirs.get_chemical_symbols()))
    symbols = theirs.get_chemical_symbols()
    images = []
    for order in permutations(ours):
        renamed = theirs.copy()
        table = dict(zip(kinds, order, strict=True))
        renamed.symbols = [table[symbol] for symbol in symbols]
        if Counter(fractions(renamed)) == Counter(fractions(atoms)):
            images.append(renamed)
    return images


def fractions(atoms: Atoms) -> dict[str, int]:
    return {
        symbol: round(1e6 * n / len(atoms))
        for symbol, n in Counter(atoms.get_chemical_symbols()).items()
    }


@pytest.mark.parametrize(("name", "label"), SAME.items())
def test_the_same_structure_in_pymatgens_collection(
    name: str, label: str, collection: dict[str, list[Structure]]
) -> None:
    """Space group, orbits and positions agree with the encyclopaedia that pymatgen ships."""
    atoms, _ = skeleton(name)
    mine = fingerprint(atoms, EXACT)
    assert mine is not None
    theirs = [
        fingerprint(image, EXACT)
        for structure in collection[label]
        for image in with_elements_of(structure, atoms)
    ]
    assert any(other is not None and equal(mine, other) for other in theirs)


def test_an_unknown_prototype_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no prototype 'rock'.*rocksalt"):
        prototype("rock")


def test_a_skeleton_belongs_to_who_asks_for_it() -> None:
    first, _ = skeleton("perovskite")
    first.numbers[:] = 29
    first.positions += 1.0
    assert formula("perovskite") == "SrTiO3"
    assert space_group(skeleton("perovskite")[0], EXACT) == 221


def test_slots_tell_what_may_go_in() -> None:
    found: Prototype = prototype("spinel")
    assert found.elements == ("Mg", "Al", "O")
    assert [slot.sign for slot in found.slots] == [1, 1, -1]
    assert found.mixed == (0, 1)
    assert prototype("pyrite").slots[1].bonded == 1
    assert not prototype("laves_c15").ionic
