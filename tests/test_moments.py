"""Magnetic moments through every door: files, adapters, Potential, ensembles, dynamics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from models import BASE, crystal, largest, molecule, random_model, random_potential
from toy import LennardJones

import dpa4sim
from dpa4sim.adapters.ase import DPA4Calculator, from_atoms, to_atoms
from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config, PropertyConfig, SpinConfig
from dpa4sim.ensemble import Ensemble
from dpa4sim.errors import ConfigError, DataError, ModelError
from dpa4sim.moments import moments_complaint, with_moments
from dpa4sim.potential import Potential

SPECIES = ("Ni", "O")
CONFIG = replace(
    BASE, species=SPECIES, cutoff=4.0, spin=SpinConfig(magnetic=("Ni",)), n_blocks=1, max_degree=1
)
NATIVE = replace(CONFIG, spin=SpinConfig(scheme="native", magnetic=("Ni",)))
CONFIGS = pytest.mark.parametrize("config", [CONFIG, NATIVE], ids=["virtual", "native"])
TOLERANCE = 1e-12


def nickel_oxide(vectors: bool = True) -> Atoms:
    """Two formula units with rattled positions and moments."""
    atoms = bulk("NiO", "rocksalt", a=4.2) * (2, 1, 1)
    atoms.rattle(0.05, seed=1)
    moments = np.random.default_rng(2).normal(size=(4, 3)) + np.array([0, 0, 1])
    atoms.set_initial_magnetic_moments(moments if vectors else moments[:, 2])
    return atoms


def bare() -> Atoms:
    """The same without moments."""
    atoms = nickel_oxide()
    del atoms.arrays["initial_magmoms"]
    return atoms


def test_config_is_kept_and_left_out_where_there_are_no_spins():
    assert DPA4Config.from_dict(CONFIG.to_dict()) == CONFIG
    assert CONFIG.to_dict()["spin"]["virtual_scale"] == (0.314,)
    assert "spin" not in BASE.to_dict()
    assert not BASE.has_spins
    assert CONFIG.has_virtual_atoms
    assert (CONFIG.n_kinds, NATIVE.n_kinds) == (4, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spin": SpinConfig(magnetic=("Fe",))}, "names Fe, which the model does not know"),
        ({"property_head": PropertyConfig(name="gap")}, "property 'gap' has no spins"),
        (
            {
                "spin": SpinConfig(scheme="native", magnetic=("Ni",)),
                "max_degree": 0,
                "max_order": 0,
            },
            "needs features of degree 1",
        ),
    ],
)
def test_config_that_cannot_be(change, words):
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"magnetic": ("Ni", "Ni")}, "name each species once"),
        ({"magnetic": ("Ni",), "virtual_scale": (0.1, 0.2)}, "has 2 numbers"),
        ({"virtual_scale": (0.0,)}, "must be finite and not zero"),
        ({"virtual_scale": (float("nan"),)}, "must be finite and not zero"),
    ],
)
def test_spin_config_that_cannot_be(values, words):
    with pytest.raises(ConfigError, match=words):
        SpinConfig(**values)


@CONFIGS
def test_model_file_keeps_the_numbers(config, tmp_path):
    potential = random_potential(config)
    potential.save(tmp_path / "model.safetensors")
    again = dpa4sim.load(tmp_path / "model.safetensors", dtype="float64")
    got, expected = again.evaluate(nickel_oxide()), potential.evaluate(nickel_oxide())
    assert again.config == config
    assert torch.equal(got.energy, expected.energy)
    assert torch.equal(got.magnetic_forces, expected.magnetic_forces)


def test_network_that_was_made_in_float32_still_stands_off_to_the_last_bit():
    """0.314 is no float32 number."""
    model = random_model(CONFIG)
    batch = from_atoms(nickel_oxide())
    expected = Potential(model, dtype="float64")(batch).magnetic_forces
    state = {name: value.clone() for name, value in model.state_dict().items()}
    single = type(model)(CONFIG).double()
    single.load_state_dict(state)
    assert largest(Potential(single, dtype="float64")(batch).magnetic_forces - expected) < 1e-6
    assert single.moments.scale == model.moments.scale == [0.314, 0.0]


@CONFIGS
def test_numbers_are_moments_along_z(config):
    potential, along_z = random_potential(config), nickel_oxide(vectors=False)
    vectors = along_z.copy()
    moments = along_z.get_initial_magnetic_moments()
    del vectors.arrays["initial_magmoms"]
    vectors.set_initial_magnetic_moments(np.outer(moments, [0, 0, 1]))
    got, expected = potential.evaluate(along_z), potential.evaluate(vectors)
    assert torch.equal(got.energy, expected.energy)
    assert torch.equal(got.magnetic_forces, expected.magnetic_forces)


@CONFIGS
def test_extxyz_pymatgen_and_torchsim_carry_the_moments(config, tmp_path):
    from dpa4sim.adapters.pymatgen import from_structure, to_structures
    from dpa4sim.adapters.torchsim import DPA4Model, from_state, to_state

    potential, atoms = random_potential(config), nickel_oxide()
    batch = from_atoms(atoms)
    expected = potential(batch)
    write(tmp_path / "a.extxyz", atoms)
    written = potential.evaluate(tmp_path / "a.extxyz")
    assert largest(written.energy - expected.energy) < 1e-6  # eight digits in the file
    (structure,) = to_structures(batch)
    assert largest(from_structure(structure).magmoms - batch.magmoms) == 0
    assert largest(potential.evaluate(structure).energy - expected.energy) < TOLERANCE
    state = to_state(batch)
    assert torch.equal(from_state(state).magmoms, batch.magmoms)
    output = DPA4Model(potential)(state)
    assert largest(output["magnetic_forces"] - expected.magnetic_forces) < TOLERANCE


def test_pymatgen_moments_of_every_kind():
    from pymatgen.core import Lattice, Structure
    from pymatgen.electronic_structure.core import Magmom

    from dpa4sim.adapters.pymatgen import from_structure

    lattice, sites = Lattice.cubic(4.2), [[0, 0, 0], [0.5, 0.5, 0.5]]
    for given, expected in (
        ([2.0, None], [[0, 0, 2.0], [np.nan] * 3]),
        ([[1.0, 2.0, 3.0], 0], [[1.0, 2.0, 3.0], [0, 0, 0]]),
        ([Magmom([1.0, 0.5, 0.0]), Magmom(3.0)], [[1.0, 0.5, 0.0], [0, 0, 3.0]]),
    ):
        made = Structure(lattice, ["Ni", "O"], sites, site_properties={"magmom": given})
        found = from_structure(made).magmoms.numpy()
        np.testing.assert_allclose(found, expected)
    assert from_structure(Structure(lattice, ["Ni", "O"], sites)).magmoms is None
    wrong = Structure(lattice, ["Ni", "O"], sites, site_properties={"magmom": [[1.0, 2.0], 0]})
    with pytest.raises(DataError, match=r"magmom \[1.0, 2.0\] on site 0"):
        from_structure(wrong)


def test_atoms_come_back_with_moments_and_magnetic_forces(tmp_path):
    potential, atoms = random_potential(CONFIG), nickel_oxide(vectors=False)
    batch = from_atoms(atoms)
    prediction = potential(batch)
    for (made,) in (to_atoms(batch, prediction), to_atoms(batch, prediction, templates=[atoms])):
        np.testing.assert_allclose(made.get_initial_magnetic_moments(), batch.magmoms.numpy())
        by_moment = torch.tensor(made.arrays["magnetic_forces"])
        assert torch.equal(by_moment, prediction.magnetic_forces)
        write(tmp_path / "out.extxyz", made)
        assert read(tmp_path / "out.extxyz").get_initial_magnetic_moments().shape == (4, 3)
    assert to_atoms(from_atoms(bare()))[0].has("initial_magmoms") is False


def test_calculator_takes_the_moments_and_notices_new_ones():
    potential, atoms = random_potential(CONFIG), nickel_oxide()
    atoms.calc = DPA4Calculator(potential)
    first = atoms.get_potential_energy()
    assert first == float(potential.evaluate(atoms).energy[0])
    assert atoms.calc.results["magnetic_forces"].shape == (4, 3)
    atoms.set_initial_magnetic_moments(-atoms.get_initial_magnetic_moments())
    assert atoms.get_potential_energy() != first
    other = bare()
    other.calc = DPA4Calculator(potential)
    with pytest.raises(DataError, match="has no magnetic moments"):
        other.get_potential_energy()


def test_structure_without_moments_is_named():
    potential = random_potential(CONFIG)
    good, none = nickel_oxide(), bare()
    with pytest.raises(DataError) as caught:
        potential.evaluate([good, good, good, none])
    assert str(caught.value).startswith("Structure 3 cannot be evaluated: it has no magnetic")
    assert "spins on Ni; set them by atoms.set_initial_magnetic_moments" in str(caught.value)
    infinite = nickel_oxide()
    infinite.arrays["initial_magmoms"][1, 2] = np.inf  # of oxygen, which has no moment
    assert bool(potential.evaluate(infinite).energy.isfinite().all())
    infinite.arrays["initial_magmoms"][2, 2] = np.inf
    with pytest.raises(DataError, match="the magnetic moment of atom 2 is not finite"):
        potential.evaluate(infinite)
    shapeless = bare()
    shapeless.set_array("initial_magmoms", np.ones((4, 2)))
    with pytest.raises(DataError, match=r"moments have shape \(4, 2\)"):
        potential.evaluate(shapeless)
    with pytest.raises(DataError, match="structures carry no magnetic moments"):
        potential(from_atoms(none))


def test_structures_without_a_magnetic_element_need_no_moments():
    potential = random_potential(CONFIG)
    oxygen = Atoms("O2", [[0, 0, 0], [0, 0, 1.2]])
    alone = potential.evaluate(oxygen)
    together = potential.evaluate([oxygen, nickel_oxide()])
    assert largest(together.energy[0] - alone.energy[0]) < TOLERANCE
    assert largest(together.magnetic_forces[:2]) == 0
    assert largest(together.magnetic_forces[2:]) > 1e-4


def test_model_without_spins_does_not_look():
    potential = random_potential(replace(CONFIG, spin=SpinConfig()))
    got, expected = potential.evaluate([nickel_oxide(), bare()]), potential.evaluate([bare()] * 2)
    assert torch.equal(got.energy, expected.energy)
    assert got.magnetic_forces is None


def test_what_a_model_takes():
    system = from_atoms(nickel_oxide())
    assert with_moments(system, frozenset()).magmoms is None
    assert moments_complaint(replace(system, magmoms=None), frozenset()) is None
    unknown = with_moments(replace(system, magmoms=None), frozenset({28}))
    nickel = system.atomic_numbers == 28
    assert bool(unknown.magmoms[nickel].isnan().all())
    assert largest(unknown.magmoms[~nickel]) == 0


@CONFIGS
def test_ensemble_and_sum(config):
    members = [random_potential(config, seed) for seed in (0, 1)]
    said = [member.evaluate(nickel_oxide()).magnetic_forces for member in members]
    mean = Ensemble(members).evaluate(nickel_oxide())
    assert largest(mean.magnetic_forces - (said[0] + said[1]) / 2) < TOLERANCE
    total = members[0] + LennardJones(cutoff=3.0)
    assert total.magnetic_elements == {28}
    assert torch.equal(total(from_atoms(nickel_oxide())).magnetic_forces, said[0])
    other = random_potential(replace(config, spin=SpinConfig()))
    with pytest.raises(ModelError, match="differ in their magnetic elements: Ni and none"):
        Ensemble([members[0], other])


@CONFIGS
def test_edges_that_were_searched_before(config):
    from dpa4sim.edges import neighbors

    potential, batch = random_potential(config), from_atoms(nickel_oxide())
    got, expected = potential(batch, edges=neighbors(batch, potential.cutoff)), potential(batch)
    assert torch.equal(got.magnetic_forces, expected.magnetic_forces)


@CONFIGS
def test_padding_is_silent(config):
    potential, batch = random_potential(config), from_atoms(nickel_oxide())
    got, expected = potential(batch.padded(9, 4)), potential(batch)
    assert largest(got.energy[0] - expected.energy[0]) < TOLERANCE
    assert largest(got.magnetic_forces[:4] - expected.magnetic_forces) < TOLERANCE


@CONFIGS
def test_broken_system_has_no_magnetic_forces(config):
    potential, batch = random_potential(config), from_atoms(nickel_oxide())
    broken = batch.with_geometry(batch.positions * torch.nan, batch.cell)
    both = potential(Batch.concatenate([broken, batch]))
    assert bool(both.magnetic_forces[:4].isnan().all())
    assert largest(both.magnetic_forces[4:] - potential(batch).magnetic_forces) < TOLERANCE


@CONFIGS
def test_embeddings_see_the_moments(config):
    potential, atoms = random_potential(config), nickel_oxide()
    found = potential.embed(atoms).descriptor
    expected = potential.evaluate(atoms, descriptors=True).descriptors
    assert largest(found - expected) < TOLERANCE
    atoms.set_initial_magnetic_moments(2 * atoms.get_initial_magnetic_moments())
    assert largest(potential.embed(atoms).descriptor - expected) > 1e-6
    with pytest.raises(DataError, match="has no magnetic moments"):
        potential.embed(bare())


def test_what_cannot_run_says_so(tmp_path):
    from dpa4sim.adapters.lammps import attach
    from dpa4sim.adapters.mliap import Unified
    from dpa4sim.export import export

    potential = random_potential(CONFIG)
    with pytest.raises(ConfigError, match="with spins runs by PyTorch only"):
        Potential(random_model(CONFIG), compile=True)
    with pytest.raises(ModelError, match="LAMMPS passes no moments on"):
        Unified(potential)
    with pytest.raises(ConfigError, match="does not run in LAMMPS"):
        attach(None, potential, ["Ni", "O"])
    with pytest.raises(ModelError, match=r"cannot be exported to \.pt2"):
        export(potential, tmp_path / "a.pt2")


def test_a_model_with_spins_does_not_screen(tmp_path):
    with pytest.raises(ConfigError, match="A model with spins cannot screen"):
        dpa4sim.screen(random_potential(CONFIG), [nickel_oxide()], directory=tmp_path / "campaign")


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_torchsim_takes_our_steps_at_held_moments(optimizer):
    from dpa4sim.adapters.torchsim import DPA4Model, from_state, to_state
    from dpa4sim.adapters.torchsim_steps import relax_pair

    potential, batch = random_potential(CONFIG), from_atoms(nickel_oxide())
    init, step = relax_pair(optimizer, cell=False, fmax=1e-9)
    model = DPA4Model(potential)
    state = init(to_state(batch), model)
    for _ in range(3):
        state = step(state, model)
    options = {"cell": False, "fmax": 1e-9, "max_steps": 3, "max_edges": 1e6, "progress": False}
    ours = dpa4sim.relax(potential, batch, optimizer=optimizer, **options)
    assert largest(state.positions - ours.batches[0].positions) < TOLERANCE
    assert torch.equal(from_state(state).magmoms, batch.magmoms)


def test_dynamics_hold_the_moments():
    """They conserve E(R, m) with m fixed, and the structures keep their moments."""
    potential = random_potential(CONFIG)
    atoms = nickel_oxide()
    runs = dpa4sim.md(potential, [atoms, bare()], ensemble="nve", steps=20, timestep=0.2, seed=1,
                      temperature=100.0, sample_every=5)  # fmt: skip
    assert [run.status.name for run in runs] == ["COMPLETED", "INVALID"]
    assert "has no magnetic moments" in runs[1].reason
    assert torch.equal(runs[0].batch.magmoms, from_atoms(atoms).magmoms)


def test_memory_is_probed_with_moments():
    from dpa4sim.pool.capacity import probe

    batch = probe(random_potential(CONFIG), 2)
    assert batch.atomic_numbers.unique().tolist() == [28]
    assert batch.magmoms is not None
    assert probe(random_potential(BASE), 2).magmoms is None


def test_lost_moments_of_a_batch_are_not_silent():
    """A batch in which one system has none carries NaN there, and so does its energy."""
    potential = random_potential(CONFIG)
    batch = Batch.concatenate([from_atoms(nickel_oxide()), from_atoms(bare())])
    energy = potential(batch).energy
    assert bool(energy[0].isfinite())
    assert bool(energy[1].isnan())
    assert crystal().magmoms is molecule().magmoms is None
