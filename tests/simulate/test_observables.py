"""Observables on the device: against closed forms, ASE, and themselves in another batch."""

from collections import Counter
from dataclasses import dataclass, fields, replace
from math import pi, sqrt

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from toy import LennardJones, crystals, from_atoms, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.errors import ConfigError
from dpa4sim.pool.pack import join, rebuild, take
from dpa4sim.simulate.observables import (
    Origin,
    PairDistances,
    Thermodynamics,
    coordination,
    count_pairs,
    displacements,
    kinetic_energy,
    mean_square,
    origin,
    pair_distances,
    pressure,
    radial_distribution,
    radii,
    temperature,
    thermodynamics,
)
from dpa4sim.units import GPA_PER_EV_A3

ROUNDING = 1e-12
"""Relative error of a few dozen float64 operations."""

ROUNDING_A2 = 1e-24
"""Square of the rounding error of positions of tens of Å; an unjust move is 1 Å^2."""

UNITS_OF_ASE = 1e-7
"""ASE and we round the same constants to nine digits."""

READS_BACK = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "_unique2"} | {
    *("bincount", "histc", "equal", "is_nonzero", "linalg_inv", "linalg_solve", "argwhere")
}


@dataclass(frozen=True)
class Measured:
    """Everything that accumulates, and what it belongs to, as a run would hold it."""

    batch: Batch
    start: Origin
    pairs: PairDistances
    velocities: Float[Tensor, "atom 3"]
    masses: Float[Tensor, " atom"]


def structures() -> list[Atoms]:
    return [*crystals().values(), *without_bulk().values()]


def measured(batch: Batch, seed: int = 0) -> Measured:
    """At the start; velocities and masses are a function of the atom's place alone."""
    velocities = torch.sin(1e3 * batch.positions + seed) * 0.01
    return Measured(
        batch=batch,
        start=origin(batch),
        pairs=pair_distances(batch, r_max=5.0, n_bins=40),
        velocities=velocities,
        masses=10.0 + batch.atomic_numbers.double(),
    )


def moved(state: Measured, time: float) -> Measured:
    positions = state.batch.positions + time * state.velocities
    return replace(state, batch=state.batch.with_geometry(positions, state.batch.cell))


def sampled(state: Measured) -> Measured:
    edges = neighbors(state.batch, state.pairs.r_max)
    due = state.batch.n_atoms > 1
    return replace(state, pairs=count_pairs(state.pairs, state.batch, edges, due))


def everything(state: Measured) -> dict[str, Tensor]:
    """Every observable, by name; one row per system, but displacements per atom."""
    batch = state.batch
    found = LennardJones()(batch)
    far = displacements(state.start, batch, state.masses)
    thermo = thermodynamics(
        batch, found.energy, found.stress, state.velocities, state.masses, 3 * batch.n_atoms - 3
    )
    return {
        **{field.name: getattr(thermo, field.name) for field in fields(Thermodynamics)},
        "msd": mean_square(far, batch),
        "msd of copper": mean_square(far, batch, element=29),
        "rdf": radial_distribution(state.pairs, batch),
        "coordination": coordination(state.pairs, batch),
        "displacements": far,
    }


def test_thermodynamics_are_those_of_ase():
    noise = np.random.default_rng(3)
    for atoms in structures():
        batch = from_atoms(atoms)
        atoms.set_velocities(noise.normal(size=(len(atoms), 3)) * 0.05)
        velocities = torch.tensor(atoms.get_velocities() * units.fs)
        masses = torch.tensor(atoms.get_masses())
        found = LennardJones()(batch)
        thermo = thermodynamics(
            batch, found.energy, found.stress, velocities, masses, 3 * batch.n_atoms
        )
        kinetic = atoms.get_kinetic_energy()
        assert float(thermo.kinetic_energy[0]) == pytest.approx(kinetic, rel=UNITS_OF_ASE)
        assert float(thermo.temperature[0]) == pytest.approx(
            atoms.get_temperature(), rel=UNITS_OF_ASE
        )
        assert float(thermo.total_energy[0]) == pytest.approx(
            float(found.energy[0]) + kinetic, rel=UNITS_OF_ASE
        )
        if atoms.cell.rank < 3:
            assert torch.isnan(thermo.pressure_gpa).all()
            continue
        gas = 2 * kinetic / 3 / atoms.get_volume()
        virial = float(found.stress[0].trace()) / 3
        assert float(thermo.pressure_gpa[0]) == pytest.approx(
            (gas - virial) / units.GPa, rel=UNITS_OF_ASE
        )
        assert float(thermo.volume[0]) == pytest.approx(atoms.get_volume(), rel=ROUNDING)


def test_the_pressure_of_an_ideal_gas():
    """P V = n k T with 3 n degrees of freedom."""
    cell = 10 * torch.eye(3, dtype=torch.float64)[None]
    kinetic = torch.tensor([1.5 * 64 * 8.6173303e-5 * 300.0], dtype=torch.float64)
    assert temperature(kinetic, torch.tensor([192])).item() == pytest.approx(300.0, rel=ROUNDING)
    expected = 64 * 8.6173303e-5 * 300.0 / 1000.0
    volume = torch.tensor([1000.0], dtype=torch.float64)
    found = pressure(torch.zeros_like(cell), kinetic, volume)
    assert found.item() == pytest.approx(expected, rel=ROUNDING)
    assert expected * GPA_PER_EV_A3 == pytest.approx(0.26512, rel=1e-3)


@pytest.mark.parametrize("time", [1.0, 3e4])
def test_ballistic_particles_move_as_the_square_of_time(time):
    """MSD = <|v - v_0|^2> t^2, v_0 the drift; far out of their cells too."""
    state = measured(packed(structures()))
    masses, start = state.masses, 0
    found = mean_square(displacements(state.start, moved(state, time).batch, masses), state.batch)
    for system, n in enumerate(state.batch.n_atoms.tolist()):
        v, m = state.velocities[start : start + n], masses[start : start + n, None]
        own = v - (m * v).sum(0) / m.sum()
        expected = float(own.square().sum(1).mean()) * time**2
        assert float(found[system]) == pytest.approx(expected, rel=1e-9, abs=ROUNDING_A2 * time)
        start += n
    assert float(found.max()) > 1e-4 * time**2


def test_what_moves_with_its_cell_or_as_a_whole_has_not_moved():
    batch = packed(structures())
    noise = np.random.default_rng(1)
    strain = torch.tensor(np.eye(3) + 0.3 * noise.normal(size=(batch.n_systems, 3, 3)))
    solid = batch.volume > 1
    strain = torch.where(solid[:, None, None], strain, torch.eye(3))
    each = strain[batch.system_idx]
    positions = (batch.positions[:, :, None] * each).sum(1) + 5.0
    after = batch.with_geometry(positions, batch.cell @ strain)
    masses = 10.0 + batch.atomic_numbers.double()
    still = mean_square(displacements(origin(batch), after, masses), batch)
    assert float(still.max()) < 100 * ROUNDING_A2
    bare = replace(
        origin(batch),
        inverse_cell=torch.linalg.inv(after.cell.where(solid[:, None, None], torch.eye(3))),
    )
    unjust = mean_square(displacements(bare, after, masses), batch)
    assert float(unjust[3]) > 0.1


def test_msd_of_one_element():
    batch = packed([bulk("NaCl", "rocksalt", a=5.6), bulk("Cu") * (2, 1, 1), Atoms("Cl2Na")])
    step = torch.zeros_like(batch.positions)
    step[batch.atomic_numbers == 17, 0] = 1.0
    found = mean_square(step, batch, element=17)
    assert found[[0, 2]].tolist() == [1.0, 1.0]
    assert torch.isnan(found[1])
    assert mean_square(step, batch, element=11)[[0, 2]].tolist() == [0.0, 0.0]
    assert mean_square(step, batch).tolist() == pytest.approx([0.5, 0.0, 2 / 3])


def counted(batch: Batch, r_max: float, n_bins: int, pair=None) -> PairDistances:
    pairs = pair_distances(batch, r_max=r_max, n_bins=n_bins, pair=pair)
    everybody = torch.ones(batch.n_systems, dtype=torch.bool)
    return count_pairs(pairs, batch, neighbors(batch, r_max), everybody)


def gas(noise: np.random.Generator, n: int, edges: list[float]) -> Batch:
    """Atoms anywhere in a box."""
    cell = torch.tensor(edges, dtype=torch.float64).diag()
    return Batch.single(torch.tensor(noise.random((n, 3))) @ cell, [1] * n, cell, pbc=True)


def test_an_ideal_gas_has_no_structure():
    """g = 1 - 1/n: the density counts the atom itself."""
    n, noise = 400, np.random.default_rng(0)
    batch = gas(noise, n, [12.0, 14.0, 16.0])
    pairs = pair_distances(batch, r_max=5.5, n_bins=11)
    for _ in range(5):
        batch = gas(noise, n, [12.0, 14.0, 16.0])
        pairs = count_pairs(pairs, batch, neighbors(batch, 5.5), torch.tensor([True]))
    found = radial_distribution(pairs, batch)[0]
    deviations = 5.0 / (pairs.counts[0] / 2).sqrt()  # a pair is listed twice
    assert ((found - (1 - 1 / n)).abs() < deviations).all()
    assert float(deviations[-1]) < 0.05
    assert radii(pairs).tolist() == [0.25 + 0.5 * k for k in range(11)]


def test_the_shells_of_a_face_centred_crystal():
    """12, 6, 24, 12 neighbours at a sqrt(k/2), from the cell of one atom."""
    a, width = 4.0, 0.01
    pairs = counted(from_atoms(bulk("Al", "fcc", a=a)), 6.0, 600)
    found = pairs.counts[0]
    bins = [int(a * sqrt(k / 2) / width) for k in (1, 2, 3, 4)]
    shells = [int(found[k - 1 : k + 2].sum()) for k in bins]
    assert shells == [12, 6, 24, 12]
    assert int(found.sum()) == sum(shells)
    batch = from_atoms(bulk("Al", "fcc", a=a))
    assert float(coordination(pairs, batch)[0, bins[1] - 10]) == 12.0
    g, r = radial_distribution(pairs, batch)[0], radii(pairs)
    around = (4 * pi * r**2 * g).sum() * width / float(batch.volume[0])
    assert float(around) == pytest.approx(54.0, rel=1e-4)


@pytest.mark.parametrize(
    ("pair", "first"), [(None, 6), ((11, 17), 6), ((17, 11), 6), ((11, 11), 0), ((29, 11), None)]
)
def test_pairs_of_two_elements(pair, first):
    batch = from_atoms(bulk("NaCl", "rocksalt", a=5.6, cubic=True))
    pairs = counted(batch, 6.0, 60, pair)
    found = coordination(pairs, batch)[0, 30]
    g = radial_distribution(pairs, batch)[0]
    if first is None:
        assert torch.isnan(found)
        assert torch.isnan(g).all()
        return
    assert float(found) == first
    density, width = (4 if pair else 8) / 5.6**3, 0.1
    shells = 4 * pi * radii(pairs) ** 2 * width
    around = (density * g * shells)[:30].sum()  # the shell of a bin is 4 pi r^2 w to 1e-4
    assert float(around) == pytest.approx(first, rel=2e-4)


def test_samples_of_different_volumes_are_weighed_by_their_density():
    """A gas that is compressed stays structureless."""
    noise, n = np.random.default_rng(2), 300
    pairs = None
    for edge in (11.0, 14.0, 17.0, 20.0):
        batch = gas(noise, n, [edge] * 3)
        pairs = pairs or pair_distances(batch, r_max=5.0, n_bins=1)
        pairs = count_pairs(pairs, batch, neighbors(batch, 5.0), torch.tensor([True]))
    assert float(radial_distribution(pairs, batch)[0, 0]) == pytest.approx(1 - 1 / n, abs=0.02)
    unweighted = float(pairs.counts[0, 0] * batch.volume[0] / (4 * n * n * 4 * pi / 3 * 125))
    assert unweighted > 1.5


def test_systems_that_are_not_due_are_not_sampled():
    batch = packed(list(crystals().values()))
    due = torch.tensor([True, False, True, False, False])
    pairs = pair_distances(batch, r_max=4.0, n_bins=8)
    once = count_pairs(pairs, batch, neighbors(batch, 4.0), due)
    twice = count_pairs(once, batch, neighbors(batch, 4.0), torch.ones(5, dtype=torch.bool))
    assert twice.n_samples.tolist() == [2, 1, 2, 1, 1]
    assert (once.counts[~due] == 0).all()
    assert torch.equal(twice.counts[due], 2 * once.counts[due])
    assert torch.isnan(radial_distribution(once, batch)[1]).all()


def test_distances_beyond_the_last_bin_are_left_out():
    """So are the silent edges that fill up a fixed capacity."""
    batch = packed(list(crystals().values()))
    near, far = neighbors(batch, 3.0), neighbors(batch, 6.0)
    pairs, due = pair_distances(batch, r_max=3.0, n_bins=12), torch.ones(5, dtype=torch.bool)
    assert torch.equal(
        count_pairs(pairs, batch, near, due).counts, count_pairs(pairs, batch, far, due).counts
    )


def test_without_a_volume_there_are_neighbors_but_no_density():
    batch = from_atoms(without_bulk()["molecule"])
    pairs = counted(batch, 6.0, 1)
    assert torch.isnan(radial_distribution(pairs, batch)).all()
    assert coordination(pairs, batch).tolist() == [[3.0]]


@pytest.mark.parametrize("bad", [{"r_max": 0.0, "n_bins": 4}, {"r_max": 3.0, "n_bins": 0}])
def test_no_bins_or_no_range_are_refused(bad):
    with pytest.raises(ConfigError, match="positive range"):
        pair_distances(from_atoms(bulk("Cu")), **bad)


def test_the_same_bits_in_any_batch():
    """Alone, first, last; through take and join in the middle of a run."""
    together = sampled(moved(sampled(measured(packed(structures()))), 40.0))
    numbers = everything(together)
    of = together.batch.system_idx
    for system, atoms in enumerate(structures()):
        alone = sampled(measured(from_atoms(atoms)))
        partner = sampled(measured(packed(structures()[2:5])))
        pair = join(partner, alone) if system % 2 else join(alone, partner)
        place = 3 if system % 2 else 0
        moving = sampled(moved(pair, 40.0))
        for state, own in ((sampled(moved(alone, 40.0)), 0), (take(moving, [place]), 0)):
            for name, value in everything(state).items():
                rows = of == system if name == "displacements" else slice(system, system + 1)
                assert value.dtype == torch.float64, name
                there = value if name == "displacements" else value[own : own + 1]
                assert torch.equal(there.nan_to_num(9.0), numbers[name][rows].nan_to_num(9.0)), name


class Names(TorchDispatchMode):
    """Names of the aten calls; an index by a mask counts as the nonzero that it hides."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        index = args[1] if name.startswith("index") and len(args) > 1 else ()
        masks = isinstance(index, list | tuple) and any(
            isinstance(t, Tensor) and t.dtype == torch.bool for t in index
        )
        self.names["nonzero" if masks else name] += 1
        return function(*args, **(kwargs or {}))


def observe(state: Measured, edges: Edges, energy: Tensor, stress: Tensor) -> dict[str, Tensor]:
    """All that a run calls on the device."""
    batch, due = state.batch, state.batch.n_atoms > 1
    far = displacements(origin(batch), batch, state.masses)
    thermo = thermodynamics(
        batch, energy, stress, state.velocities, state.masses, 3 * batch.n_atoms - 3
    )
    pairs = count_pairs(replace(state.pairs, pair=(29, 11)), batch, edges, due)
    pairs = count_pairs(pairs, batch, edges, due)
    return {
        "temperature": thermo.temperature,
        "msd": mean_square(far, batch),
        "of": mean_square(far, batch, element=29),
        "rdf": radial_distribution(pairs, batch),
        "coordination": coordination(pairs, batch),
        "radii": radii(pairs),
    }


def test_nothing_is_read_back():
    """By the names of the calls, and on a pretended CUDA device, where any read raises."""
    state = measured(packed(structures()))
    edges, found = neighbors(state.batch, 5.0), LennardJones()(state.batch)
    with Names() as calls:
        observe(state, edges, found.energy, found.stress)
    assert not READS_BACK & set(calls.names)
    with Names() as control:
        state.velocities[state.masses > 20]
    assert "nonzero" in control.names
    with FakeTensorMode():

        def empty(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

        pretended = Edges(*(empty(getattr(edges, f.name)) for f in fields(Edges)[:4]))
        numbers = observe(
            rebuild(empty, state), pretended, empty(found.energy), empty(found.stress)
        )
        assert all(value.device.type == "cuda" for value in numbers.values())


def test_the_number_of_calls_does_not_grow_with_the_batch():
    few, many = (measured(packed(structures() * n)) for n in (1, 4))
    counts = []
    for state in (few, many):
        edges, found = neighbors(state.batch, 5.0), LennardJones()(state.batch)
        with Names() as calls:
            observe(state, edges, found.energy, found.stress)
        counts.append(calls.names.total())
    assert counts[0] == counts[1]


def test_kinetic_energy_of_one_atom():
    """1 amu at 1 Å/fs is 51.8 eV."""
    batch = from_atoms(Atoms("H"))
    velocity = torch.tensor([[0.0, 0.6, 0.8]], dtype=torch.float64)
    found = kinetic_energy(batch, velocity, torch.tensor([1.0], dtype=torch.float64))
    assert found.item() == pytest.approx(0.5 / units.fs**2, rel=UNITS_OF_ASE)
