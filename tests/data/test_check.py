"""Each way in which data can be bad is found, named, and not seen where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from labelled import MODEL, crystal, label, mixed, molecule, trajectory

from dpa4sim.data.check import check
from dpa4sim.data.read import read_entries
from dpa4sim.errors import ConfigError

KCAL, HARTREE, BOHR = 23.0605, 1 / 27.2114, 0.529177


def found(*paths, **settings):
    return check(lambda: read_entries([str(p) for p in paths]), **settings)


@pytest.fixture
def saved(tmp_path):
    def save(name, images):
        write(tmp_path / name, images)
        return tmp_path / name

    return save


def kinds(problems):
    return sorted({problem.kind for problem in problems})


def test_good_data_has_no_problem(saved):
    paths = [saved("a.extxyz", mixed(12)), saved("b.extxyz", trajectory(8))]
    assert found(*paths) == []
    assert found(*paths, model=MODEL) == []


def without(name):
    def spoil(atoms):
        del atoms.calc.results[name]

    return spoil


def nan(name):
    def spoil(atoms):
        atoms.calc.results[name] = np.asarray(atoms.calc.results[name]) * np.nan

    return spoil


def same_site(atoms):
    atoms.positions[1] = atoms.positions[0]


def wrong_shape(atoms):
    atoms.info["REF_stress"] = np.zeros(5)


@pytest.mark.parametrize(
    ("spoil", "kind", "text"),
    [
        (without("energy"), "no energy", "no label 'energy'; name its key with --energy-key"),
        (without("forces"), "no forces", "no label 'forces'"),
        (without("stress"), "stress for some", "7 of its 8 periodic frames have a stress"),
        (nan("energy"), "cannot be used", "its energy label is not finite"),
        (nan("forces"), "cannot be used", "its forces label is not finite (atom 0)"),
        (nan("stress"), "cannot be used", "its stress label is not finite"),
        (wrong_shape, "cannot be used", "its stress label has the shape (5,)"),
        (same_site, "structure", "atoms 0 and 1 stand on one site"),
    ],
)
def test_a_sick_frame_is_named(saved, spoil, kind, text):
    images = mixed(12)
    spoil(images[6])
    path = saved("a.extxyz", images)
    (problem,) = found(path)
    assert problem.kind == kind
    assert text in problem.text
    frame = "" if kind == "stress for some" else "#6 ("
    assert f"a.extxyz{frame}" in (problem.where or problem.text)


def test_an_unknown_element_is_named(saved):
    class Narrow:
        known_elements = frozenset((13, 29))
        cutoff, device, __call__ = MODEL.cutoff, MODEL.device, MODEL.__call__

    images = [label(crystal(0)), label(molecule(1)), label(crystal(2))]
    (problem,) = found(saved("a.extxyz", images), model=Narrow())
    assert "the model does not know the element(s) H" in problem.text
    assert "a.extxyz#1 (" in problem.where


def test_duplicates_are_named_with_their_first(saved):
    """Within a file and between files; other labels do not make another geometry."""
    images = mixed(6)
    again = images[1].copy()
    label(again, energy=1.001)
    problems = found(saved("a.extxyz", [*images, again]), saved("b.extxyz", images[3:4]))
    assert kinds(problems) == ["duplicate"]
    named = {
        (p.where.split(" ")[0].rpartition("/")[2], p.text.split(" ")[5].rpartition("/")[2])
        for p in problems
    }
    assert named == {("a.extxyz#6", "a.extxyz#1"), ("b.extxyz#0", "a.extxyz#3")}


def test_a_tiny_move_is_no_duplicate(saved):
    images = mixed(2)
    moved = images[0].copy()
    moved.positions[0, 0] += 1e-3
    assert found(saved("a.extxyz", [*images, label(moved)])) == []


def test_forces_that_are_zero_everywhere(saved):
    images = mixed(6)
    for atoms in images:
        atoms.calc.results["forces"] = np.zeros((len(atoms), 3))
    (problem,) = found(saved("a.extxyz", images))
    assert problem.kind == "zero forces"
    assert "all forces of all its 6 frames are zero" in problem.text


SCALED = {
    "stress sign": ({"stress": -1.0}, "the stress have the opposite sign"),
    "gradients": ({"forces": -1.0}, "the forces have the opposite sign"),
    "forces per Bohr": ({"forces": BOHR}, "as if the forces were in Bohr instead of Å"),
    "forces in kcal": ({"forces": KCAL}, "as if the forces were in kcal/mol instead of eV"),
    "stress in GPa": ({"stress": 160.2177}, "as if the stress were in GPa instead of eV/Å^3"),
    "stress in kBar": ({"stress": -1602.177}, "kBar instead of eV/Å^3 and the opposite sign"),
    "energy in kcal": ({"energy": KCAL}, "as if the energies were in kcal/mol instead of eV"),
    "energy in Hartree": ({"energy": HARTREE}, "as if the energies were in Hartree instead of eV"),
}


@pytest.mark.parametrize("kind", SCALED)
def test_labels_that_contradict_each_other(saved, kind):
    """Found from neighbouring frames alone."""
    factors, sentence = SCALED[kind]
    problems = found(saved("a.extxyz", trajectory(12, **factors)))
    assert problems
    assert all(p.level == "warning" and "a.extxyz" in p.where for p in problems)
    assert any(sentence in p.text for p in problems)


def test_atoms_that_cross_the_cell_are_followed(saved):
    images = trajectory(8, forces=-1.0)
    for atoms in images[::2]:
        atoms.positions[0] += atoms.cell[1]
    texts = [p.text for p in found(saved("a.extxyz", images))]
    assert any("the forces have the opposite sign" in text for text in texts)


def test_stress_sign_of_one_crystal_at_several_volumes(saved):
    images = []
    for scale in np.linspace(0.97, 1.05, 7):
        atoms = bulk("Cu", "fcc", a=3.5 * scale, cubic=True)
        images.append(label(atoms, stress=-1.0))
    texts = [p.text for p in found(saved("a.extxyz", images)) if p.kind == "stress label"]
    assert len(texts) == 1
    assert "opposite sign" in texts[0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_stress_sign_against_a_model(saved, sign):
    """Frames of different compositions tell nothing about each other; a model does."""
    path = saved("a.extxyz", [label(crystal(k), stress=sign) for k in range(8)])
    assert found(path) == []
    problems = found(path, model=MODEL)
    assert kinds(problems) == ([] if sign > 0 else ["stress label"])


@pytest.mark.parametrize(
    ("factor", "name"), [(KCAL, "kcal/mol"), (HARTREE, "Hartree"), (1000.0, "meV")]
)
def test_files_of_unlike_energies(saved, factor, name):
    one = saved("a.extxyz", mixed(20))
    other = saved("b.extxyz", [label(crystal(100 + k), energy=factor) for k in range(8)])
    (problem,) = found(one, other)
    assert problem.where.endswith("b.extxyz")
    assert f"as if the energies were in {name} instead of eV" in problem.text
    assert "a.extxyz" in problem.text


def test_files_of_unlike_forces(saved):
    same = [label(crystal(k)) for k in range(40)]
    images = [label(crystal(100 + k), forces=KCAL) for k in range(20)]
    (problem,) = found(saved("a.extxyz", same), saved("b.extxyz", images))
    assert problem.where.endswith("b.extxyz")
    assert "perhaps in kcal/mol/Å" in problem.text


def test_an_empty_split(tmp_path, saved):
    (tmp_path / "b.extxyz").touch()
    (problem,) = found(saved("a.extxyz", mixed(3)), tmp_path / "b.extxyz")
    assert "b.extxyz" in problem.text
    assert "the file is empty" in problem.text


def test_a_label_that_does_not_exist():
    with pytest.raises(ConfigError, match="no label 'force'"):
        check(list, require=("force",))
