"""dpa4sim eval: the numbers of the table, whatever form the labels have."""

from __future__ import annotations

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.stress import full_3x3_to_voigt_6_stress

import dpa4sim
from dpa4sim.data.read import read_frames
from dpa4sim.units import GPA_PER_EV_A3

ENERGY_EV, FORCE_EV_A, STRESS_EV_A3 = 0.24, -0.05, 0.01
"""How far the labels are put from the model's own answer."""

PRINTED = 1e-3
"""The table shows four digits; float32 energies in another batch differ less."""


def rows_of(text):
    """Numbers of the table by (quantity, unit)."""
    lines = [line.split() for line in text.splitlines()[2:] if line.strip()]
    return {(words[0], words[1]): words[2:] for words in lines if len(words) == 8}


@pytest.fixture
def labelled(model, crystals, tmp_path):
    """Write both crystals with labels at known distances from the prediction, in some form."""

    def make(form):
        frames = read(crystals, ":")
        potential = dpa4sim.load(model)
        for atoms in frames:
            prediction = potential.evaluate(atoms)
            energy = float(prediction.energy[0]) - ENERGY_EV
            forces = prediction.forces.numpy() - FORCE_EV_A
            stress = prediction.stress[0].numpy() - STRESS_EV_A3
            if form == "attached":
                voigt = full_3x3_to_voigt_6_stress(stress)
                atoms.calc = SinglePointCalculator(
                    atoms, energy=energy, forces=forces, stress=voigt
                )
                continue
            prefix = "REF_" if form in ("REF_", "both") else "my_"
            atoms.info[f"{prefix}energy"] = energy
            atoms.arrays[f"{prefix}forces"] = forces
            atoms.info[f"{prefix}stress"] = stress.ravel()
            if form == "both":
                atoms.calc = SinglePointCalculator(atoms, energy=1e6)
        path = tmp_path / "labelled.extxyz"
        write(path, frames)
        return path

    return make


@pytest.mark.parametrize("form", ["attached", "REF_", "both", "own keys"])
def test_errors_are_those_put_in(run, model, labelled, form):
    path = labelled(form)
    words = [f"--{q}-key=my_{q}" for q in ("energy", "forces", "stress")]
    code, text, err = run("eval", model, path, *(words if form == "own keys" else []))
    assert (code, err) == (0, "")
    rows = rows_of(text)
    per_atom = 1e3 * ENERGY_EV * np.array([1 / 2, 1 / 8])
    expected = {
        ("energy", "meV/atom"): (per_atom.mean(), np.sqrt((per_atom**2).mean()), per_atom.max()),
        ("forces", "meV/Å"): (1e3 * abs(FORCE_EV_A),) * 3,
        ("stress", "meV/Å^3"): (1e3 * STRESS_EV_A3,) * 3,
        ("stress", "GPa"): (GPA_PER_EV_A3 * STRESS_EV_A3,) * 3,
    }
    assert rows.keys() == expected.keys()
    for key, numbers in expected.items():
        assert rows[key][:3] == ["2", "of", "2"]
        np.testing.assert_allclose([float(x) for x in rows[key][3:]], numbers, rtol=PRINTED)


def test_absent_labels_are_absent(run, model, crystals):
    frames = read(crystals, ":")
    frames[1].info["REF_energy"] = 1.0
    write(crystals, frames)
    code, text, _ = run("eval", model, crystals)
    assert code == 0
    rows = rows_of(text)
    assert rows[("energy", "meV/atom")][:3] == ["1", "of", "2"]
    assert rows[("forces", "meV/Å")] == ["0", "of", "2", "absent", "absent", "absent"]
    assert rows[("stress", "meV/Å^3")][3:] == ["absent"] * 3


@pytest.mark.parametrize("batch_atoms", [1, 9, 10, 11])
def test_batches_do_not_change_the_table(run, model, labelled, batch_atoms):
    path = labelled("REF_")
    _, together, _ = run("eval", model, path, "--dtype", "float64")
    words = ("--dtype", "float64", "--batch-atoms", batch_atoms)
    _, apart, _ = run("eval", model, path, *words)
    assert apart == together


def test_stress_has_ases_order_and_sign(tmp_path, silicon):
    voigt = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    silicon.calc = SinglePointCalculator(silicon, stress=voigt)
    write(tmp_path / "a.extxyz", silicon)
    (frame,) = read_frames(tmp_path / "a.extxyz")
    np.testing.assert_array_equal(frame.stress, [[1, 6, 5], [6, 2, 4], [5, 4, 3]])
    assert frame.energy is None
    assert frame.forces is None


def test_parity_plot(run, model, labelled, tmp_path):
    plot = tmp_path / "parity.png"
    code, text, _ = run("eval", model, labelled("REF_"), "--parity", plot)
    assert code == 0
    assert text.splitlines()[-1] == f"parity plot: {plot}"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_subsets_have_rows_and_a_geometric_mean(run, model, labelled):
    """Table 2: the labels of the crystal in another subset are four times as far off."""
    path = labelled("REF_")
    frames = read(path, ":")
    for atoms, name, factor in zip(frames, ("near", "far"), (1, 4), strict=True):
        atoms.info["config_type"] = name
        atoms.arrays["REF_forces"] -= (factor - 1) * FORCE_EV_A
    write(path, frames)
    code, out, _ = run("eval", model, path)
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert rows["near"][0] == rows["far"][0] == "1"
    forces = {name: float(rows[name][2]) for name in ("near", "far")}
    assert forces["near"] == pytest.approx(50, rel=PRINTED)
    assert forces["far"] == pytest.approx(200, rel=PRINTED)
    assert float(rows["LWAMAE"][1]) == pytest.approx(100, rel=PRINTED)


def test_one_subset_is_no_table_of_subsets(run, model, labelled):
    _, out, _ = run("eval", model, labelled("REF_"))
    assert "LWAMAE" not in out
