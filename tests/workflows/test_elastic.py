"""Elastic constants of crystals whose lattice sums are known exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.stress import voigt_6_to_full_3x3_stress
from lattice_sums import pairs
from pymatgen.analysis.elasticity import Strain
from toy import LennardJones, Sick

from dpa4sim.errors import ConfigError
from dpa4sim.model_file import released
from dpa4sim.units import GPA_PER_EV_A3

LATTICE_SUM = 1e-4  # five points over +-1 % strain: the sixth order of the energy is left
SAME_MODULUS = 0.01  # B0 of a fit over +-3 % in volume against K at 1 % strain
SAME_DIFFERENCE = 0.05  # of two such moduli, whose errors are alike
SYMMETRY_GPA = 0.05  # of up to 490: forces of 2e-5 eV/Å that are left
EXACT = 1e-9  # closed forms


@pytest.fixture(scope="module")
def elastic(recipe) -> ModuleType:
    return recipe("elastic")


@pytest.fixture(scope="module")
def crystals(recipe):
    """An fcc and an hcp crystal, and bcc, which pairs that attract do not hold up."""
    common = recipe("recipe")
    start = [
        common.Crystal("fcc", bulk("Cu", "fcc", a=3.3)),
        common.Crystal("hcp", bulk("Zn", "hcp", a=2.4, c=3.9)),
        common.Crystal("bcc", bulk("Fe", "bcc", a=2.7)),
    ]
    good, notes = common.relaxed(LennardJones(), start, 2e-5)
    assert not notes
    return good


@pytest.fixture(scope="module")
def found(elastic, crystals):
    return elastic.elasticity(LennardJones(), crystals)


def lattice_sum(crystal) -> np.ndarray:
    """C_ijkl = 1 / 2V  sum_r (phi'' - phi' / r) r_i r_j r_k r_l / r^2, one atom per cell."""
    found = pairs(crystal.atoms)
    sites, r = found.sites, found.length
    weight = (found.curvature - found.slope / r) / r**2 / (2 * crystal.atoms.get_volume())
    products = np.stack([sites[:, i] * sites[:, j] for i, j in VOIGT], 1)
    return GPA_PER_EV_A3 * np.einsum("r,ri,rj->ij", weight, products, products)


VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


@pytest.mark.parametrize("place", [0, 2])
def test_constants_are_those_of_the_lattice_sum(crystals, found, place):
    exact = lattice_sum(crystals[place])
    np.testing.assert_allclose(
        found[place].tensor_gpa, exact, atol=LATTICE_SUM * exact.max(), err_msg=found[place].name
    )


def test_bulk_modulus_is_that_of_the_equation_of_state(recipe, crystals, found):
    """With the shape held, it is Voigt's average, for the hexagonal crystal too."""
    curves = recipe("equation_of_state").scan(LennardJones(), crystals, span=0.03, n_volumes=7)
    for curve, each in zip(curves, found, strict=True):
        assert curve.b0_gpa == pytest.approx(each.k_voigt, rel=SAME_MODULUS), each.name


def test_with_the_shape_free_the_bulk_modulus_is_that_of_reuss(recipe, elastic):
    """Layers of zinc and copper: the softer axis takes more of a change of volume."""
    common, eos, model = recipe("recipe"), recipe("equation_of_state"), LennardJones()
    layers = Atoms("ZnCu2", cell=[2.5, 2.5, 3.2, 90, 90, 120], pbc=True)
    layers.set_scaled_positions([[0, 0, 0], [1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5]])
    start, _ = common.relaxed(model, [common.Crystal("layers", layers)], 2e-5)
    (each,) = elastic.elasticity(model, start)
    reuss = 1 / np.linalg.inv(each.tensor_gpa)[:3, :3].sum()
    held, free = (
        eos.scan(model, start, span=0.03, n_volumes=7, hold=hold, fmax=2e-5)[0].b0_gpa
        for hold in ("cell", "volume")
    )
    assert each.k_voigt - reuss > 0.2
    assert held - free == pytest.approx(each.k_voigt - reuss, rel=SAME_DIFFERENCE)


def test_hexagonal_symmetry(found):
    c = found[1].tensor_gpa
    assert c[5, 5] == pytest.approx((c[0, 0] - c[0, 1]) / 2, abs=SYMMETRY_GPA)
    assert c[3, 3] == pytest.approx(c[4, 4], abs=SYMMETRY_GPA)
    assert abs(c[0, 0] - c[2, 2]) > 10 * SYMMETRY_GPA
    assert found[1].asymmetry_gpa < SYMMETRY_GPA


def test_stability(found):
    assert [each.stable for each in found] == [True, True, False]
    bcc = found[2].tensor_gpa
    assert found[2].softest_gpa == pytest.approx(bcc[0, 0] - bcc[0, 1], abs=SYMMETRY_GPA)


def test_relaxed_atoms_are_softer_and_only_where_symmetry_lets_them(elastic, crystals, found):
    """In hcp the two sublattices slide when the basal plane is sheared; fcc has one atom."""
    clamped = elastic.elasticity(LennardJones(), crystals[:2], clamped=True)
    np.testing.assert_allclose(clamped[0].tensor_gpa, found[0].tensor_gpa, atol=EXACT)
    gain = clamped[1].tensor_gpa - found[1].tensor_gpa
    assert gain[5, 5] > 10 * SYMMETRY_GPA
    assert abs(gain[2, 2]) < SYMMETRY_GPA
    assert abs(gain[3, 3]) < SYMMETRY_GPA


def test_the_orientation_of_the_input_does_not_matter(elastic, recipe, crystals, found):
    turned = [replace(crystal, atoms=crystal.atoms.copy()) for crystal in crystals[:2]]
    for crystal in turned:
        crystal.atoms.rotate(37, (1, 2, 3), rotate_cell=True)
    for one, other in zip(elastic.elasticity(LennardJones(), turned), found, strict=False):
        np.testing.assert_allclose(one.tensor_gpa, other.tensor_gpa, atol=SYMMETRY_GPA)


def test_a_linear_material_is_recovered_and_noise_averaged_over_the_symmetry(elastic, recipe):
    """Cauchy stress F S F^T / det F of S = C E, also at large strains, with 0.3 GPa of noise."""
    crystal = recipe("recipe").Crystal("cube", bulk("Cu", "fcc", a=3.6))
    exact = np.diag([170.0] * 3 + [75.0] * 3)
    exact[:3, :3] += 120 * (1 - np.eye(3))
    strains = [
        Strain.from_voigt(0.04 * step * unit) for unit in np.eye(6) for step in elastic.STEPS
    ]
    gradients = [each.get_deformation_matrix(shape="symmetric") for each in strains]
    stresses = [np.zeros((3, 3))]
    for strain, gradient in zip(strains, gradients, strict=True):
        material = voigt_6_to_full_3x3_stress(exact @ strain.voigt)
        stresses.append(gradient @ material @ gradient.T / np.linalg.det(gradient))
    clean = elastic.fit(crystal, strains, gradients, stresses)
    np.testing.assert_allclose(clean.tensor_gpa, exact, atol=1e-6)
    assert clean.asymmetry_gpa < 1e-6
    noise = 0.3 * np.random.default_rng(0).normal(size=(len(stresses), 3, 3))
    noisy = [stress + n + n.T for stress, n in zip(stresses, noise, strict=True)]
    found = elastic.fit(crystal, strains, gradients, noisy)
    c = found.tensor_gpa
    assert found.asymmetry_gpa > 1
    cubic = np.diag([c[0, 0]] * 3 + [c[3, 3]] * 3)
    cubic[:3, :3] += c[0, 1] * (1 - np.eye(3))
    np.testing.assert_allclose(c, cubic, atol=EXACT * c[0, 0])
    assert 0.01 < np.abs(c - exact).max() < 0.7 * found.asymmetry_gpa


def test_moduli_by_direction(elastic):
    """Closed forms of a cubic crystal: 1/E = S11 - 2 (S11 - S12 - S44/2) (n1^2 n2^2 + ...)."""
    c11, c12, c44 = 170.0, 120.0, 75.0
    tensor = np.diag([c11] * 3 + [c44] * 3)
    tensor[:3, :3] += c12 * (1 - np.eye(3))
    compliance = np.linalg.inv(tensor)
    s11, s12, s44 = compliance[0, 0], compliance[0, 1], compliance[3, 3]
    directions = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, -2, 0.5]], dtype=float)
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    x, y, z = directions.T**2
    exact = 1 / (s11 - 2 * (s11 - s12 - s44 / 2) * (x * y + y * z + x * z))
    np.testing.assert_allclose(elastic.young_modulus(tensor, directions), exact, rtol=EXACT)
    assert elastic.softest(tensor) == pytest.approx(c11 - c12, rel=EXACT)
    assert elastic.softest(np.diag([300.0] * 3 + [75.0] * 3)) == pytest.approx(2 * 75, rel=EXACT)


def test_one_that_fails_has_a_note_and_the_others_constants(elastic, recipe, crystals):
    bad = bulk("Cu", "fcc", a=3.3)
    bad.numbers[:] = Sick.MARK
    model = Sick(LennardJones(), "stress", np.inf)
    both = [recipe("recipe").Crystal("bad", bad), crystals[0]]
    one, other = elastic.elasticity(model, both)
    assert one.note.startswith("25 of 25 strains have no stress: ")
    assert not one.stable
    assert other.stable
    assert "NO" not in elastic.report([one, other])


@pytest.mark.parametrize("strain", [0.0, -0.01, 0.5])
def test_a_strain_that_is_not_small(elastic, strain):
    with pytest.raises(ConfigError, match=r"is not small\. Give more than 0 up to"):
        elastic.elasticity(LennardJones(), [], strain=strain)


@pytest.mark.skipif("seed" not in released(), reason="no released model 'seed' in this package")
def test_the_recipe_runs(elastic, tmp_path, capsys):
    assert elastic.main(["Copper", "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "C44" in out
    assert "yes" in out
    assert (tmp_path / "elastic.png").read_bytes().startswith(b"\x89PNG")
    (copper,) = json.loads((tmp_path / "elastic.json").read_text())["crystals"]
    assert 110 < copper["k_vrh"] < 170  # measured: 140
