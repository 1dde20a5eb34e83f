"""Energies of magnetic moments: derivatives, symmetry, batches; both schemes."""

from dataclasses import replace

import pytest
import torch
from models import BASE, crystal, largest, molecule, random_potential, rotated, rotation_matrix

from dpa4sim.batch import Batch
from dpa4sim.config import SpinConfig
from dpa4sim.potential import Potential

STEP = 1e-4
"""Å, strain or Bohr magnetons; five points."""

WEIGHTS = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
SLOPE_TOLERANCE = 1e-9
"""Per largest entry, as in test_derivatives.py; 1e-10 is what we see."""

TOLERANCE = 1e-11
"""eV, eV/Å, eV per Bohr magneton: rounding in float64; 1e-13 is what we see."""

MAGNETIC = ("Si", "O")
SETS = {
    "virtual": replace(
        BASE,
        spin=SpinConfig(scheme="virtual", magnetic=MAGNETIC, virtual_scale=(0.3, 0.25)),
        excluded_pairs=(("Si", "O"),),
    ),
    "virtual_zbl": replace(
        BASE,
        spin=SpinConfig(scheme="virtual", magnetic=MAGNETIC),
        zbl_inner=0.8,
        zbl_outer=1.6,
        n_focus=2,
    ),
    "native": replace(BASE, spin=SpinConfig(scheme="native", magnetic=MAGNETIC), bias=True),
    "native_zbl": replace(
        BASE, spin=SpinConfig(scheme="native", magnetic=MAGNETIC), zbl_inner=0.8, zbl_outer=1.6
    ),
    "native_no_seed": replace(
        BASE, spin=SpinConfig(scheme="native", magnetic=MAGNETIC), environment_seed=False
    ),
    "native_1_0": replace(
        BASE, spin=SpinConfig(scheme="native", magnetic=MAGNETIC), descriptor_version="1.0"
    ),
}
ALL = pytest.mark.parametrize("name", SETS)
STRUCTURES = pytest.mark.parametrize("structure", [molecule, crystal])
SCHEMES = pytest.mark.parametrize("name", ["virtual", "native"])


def magnetic(batch: Batch, seed: int = 0) -> Batch:
    """The structure with random moments of a few tenths to some Bohr magnetons."""
    generator = torch.Generator().manual_seed(seed)
    moments = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
    return replace(batch, magmoms=moments)


def slopes(potential: Potential, variants: list[dict[int, Batch]]) -> torch.Tensor:
    """dE of each variant, {multiple of STEP: structure}, all in one batch."""
    parts = [variant[step] for variant in variants for step in WEIGHTS]
    energies = potential(Batch.concatenate(parts)).energy.reshape(len(variants), len(WEIGHTS))
    weights = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    return energies @ weights / STEP


def moved(batch: Batch, field: str) -> list[dict[int, Batch]]:
    """The structures with each number of a field a little smaller and larger."""
    start, variants = getattr(batch, field), []
    for index in range(start.numel()):
        unit = torch.zeros_like(start)
        unit.view(-1)[index] = STEP
        variants.append({step: replace(batch, **{field: start + step * unit}) for step in WEIGHTS})
    return variants


@STRUCTURES
@ALL
def test_magnetic_forces_are_minus_the_slope_along_the_moments(name, structure):
    potential, batch = random_potential(SETS[name]), magnetic(structure())
    forces = potential(batch).magnetic_forces
    slope = slopes(potential, moved(batch, "magmoms")).reshape(-1, 3)
    assert largest(forces) > 1e-3
    assert largest(forces + slope) < SLOPE_TOLERANCE * max(1, largest(forces))


@ALL
def test_forces_are_minus_the_slope_along_the_positions_with_the_moments_held(name):
    potential, batch = random_potential(SETS[name]), magnetic(crystal())
    forces = potential(batch).forces
    slope = slopes(potential, moved(batch, "positions")).reshape(-1, 3)
    assert largest(forces + slope) < SLOPE_TOLERANCE * max(1, largest(forces))


@ALL
def test_stress_is_the_slope_along_the_strain_with_the_moments_held(name):
    potential, batch = random_potential(SETS[name]), magnetic(crystal())
    variants = []
    for a, b in [(a, b) for a in range(3) for b in range(3)]:
        unit = torch.zeros(3, 3, dtype=torch.float64)
        unit[a, b] += 0.5 * STEP
        unit[b, a] += 0.5 * STEP
        stretch = {step: torch.eye(3, dtype=torch.float64) + step * unit for step in WEIGHTS}
        variants.append(
            {
                step: batch.with_geometry(batch.positions @ matrix, batch.cell @ matrix)
                for step, matrix in stretch.items()
            }
        )
    virial = batch.volume * potential(batch).stress[0]
    slope = slopes(potential, variants).reshape(3, 3)
    assert largest(virial - slope) < SLOPE_TOLERANCE * max(1, largest(virial))


@ALL
def test_turning_positions_and_moments_together_changes_nothing(name):
    potential, batch, matrix = random_potential(SETS[name]), magnetic(crystal()), rotation_matrix(3)
    turned = replace(rotated(batch, matrix), magmoms=batch.magmoms @ matrix.T)
    got, expected = potential(turned), potential(batch)
    assert largest(got.energy - expected.energy) < TOLERANCE
    assert largest(got.forces - expected.forces @ matrix.T) < TOLERANCE
    assert largest(got.magnetic_forces - expected.magnetic_forces @ matrix.T) < TOLERANCE
    assert largest(got.stress - matrix @ expected.stress @ matrix.T) < TOLERANCE


@SCHEMES
def test_turning_the_moments_alone_is_told_apart(name):
    """Spin-orbit coupling is possible: directions of moments and of bonds meet."""
    potential, batch = random_potential(SETS[name]), magnetic(crystal())
    turned = replace(batch, magmoms=batch.magmoms @ rotation_matrix(3).T)
    assert largest(potential(turned).energy - potential(batch).energy) > 1e-4


@SCHEMES
def test_time_reversal_is_not_built_in(name):
    """As in the reference; data that hold both states must teach it."""
    potential, batch = random_potential(SETS[name]), magnetic(crystal())
    reversed_ = replace(batch, magmoms=-batch.magmoms)
    assert largest(potential(reversed_).energy - potential(batch).energy) > 1e-4


@ALL
def test_permutation(name):
    potential, batch = random_potential(SETS[name]), magnetic(molecule())
    order = torch.randperm(len(batch.positions), generator=torch.Generator().manual_seed(1))
    changed = Batch.single(
        batch.positions[order], batch.atomic_numbers[order], magmoms=batch.magmoms[order]
    )
    got, expected = potential(changed), potential(batch)
    assert largest(got.energy - expected.energy) < TOLERANCE
    assert largest(got.forces - expected.forces[order]) < TOLERANCE
    assert largest(got.magnetic_forces - expected.magnetic_forces[order]) < TOLERANCE


@ALL
def test_a_batch_is_its_parts(name):
    potential = random_potential(SETS[name])
    parts = [magnetic(molecule(), 1), magnetic(crystal(), 2), magnetic(molecule(), 3)]
    together, start = potential(Batch.concatenate(parts)), 0
    for index, part in enumerate(parts):
        alone, atoms = potential(part), slice(start, start := start + len(part.positions))
        assert largest(together.energy[index] - alone.energy[0]) < TOLERANCE
        assert largest(together.forces[atoms] - alone.forces) < TOLERANCE
        assert largest(together.magnetic_forces[atoms] - alone.magnetic_forces) < TOLERANCE


@SCHEMES
def test_other_species_moments_are_not_looked_at(name):
    potential, batch = random_potential(SETS[name]), magnetic(crystal())
    strange = batch.atomic_numbers == 6
    moments = batch.magmoms.masked_fill(strange[:, None], torch.nan)
    got, expected = potential(replace(batch, magmoms=moments)), potential(batch)
    assert torch.equal(got.energy, expected.energy)
    assert torch.equal(got.magnetic_forces, expected.magnetic_forces)
    assert largest(got.magnetic_forces[strange]) == 0
    assert largest(got.magnetic_forces[~strange]) > 1e-3


@pytest.mark.parametrize("many_edges", [False, True])
@STRUCTURES
@ALL
def test_the_kernel_and_autograd_agree(name, structure, many_edges, monkeypatch):
    monkeypatch.setattr("dpa4sim.model.dpa4.is_large", lambda n_edges: many_edges)
    for place in ("row_chunks.CHUNK_ATOMS", "row_chunks.CHUNK_EDGES"):
        monkeypatch.setattr(f"dpa4sim.kernels.{place}", 3)
    by_hand, plain = random_potential(SETS[name]), random_potential(SETS[name])
    plain.model.hand_written = False
    got, expected = by_hand(magnetic(structure())), plain(magnetic(structure()))
    assert largest(got.energy - expected.energy) < TOLERANCE
    assert largest(got.forces - expected.forces) < TOLERANCE
    assert largest(got.magnetic_forces - expected.magnetic_forces) < TOLERANCE


@SCHEMES
def test_atoms_without_a_moment_have_finite_answers(name):
    """A virtual atom on its host is left out, so only that scheme jumps there."""
    potential, batch = random_potential(SETS[name]), magnetic(crystal())
    bare = potential(replace(batch, magmoms=torch.zeros_like(batch.magmoms)))
    nearly = potential(replace(batch, magmoms=1e-7 * batch.magmoms))
    assert bool(bare.energy.isfinite().all())
    assert bool(bare.magnetic_forces.isfinite().all())
    assert largest(bare.energy - nearly.energy) < 1e-5


@SCHEMES
def test_moments_of_a_lone_atom(name):
    """No edge at all, but for the one to its own virtual atom."""
    alone = Batch.single([[0.0, 0.0, 0.0]], [14], magmoms=[[0.0, 1.0, 2.0]])
    potential = random_potential(SETS[name])
    force = potential(alone).magnetic_forces
    slope = slopes(potential, moved(alone, "magmoms")).reshape(-1, 3)
    assert largest(force) > 1e-6
    assert largest(force + slope) < SLOPE_TOLERANCE
    assert largest(torch.linalg.cross(force, alone.magmoms)) < TOLERANCE
