"""The benchmarks: their parts are right, and every one of them runs."""

import hashlib
import importlib
from collections import Counter
from dataclasses import replace

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.optimize import BFGS, FIRE
from toy import LennardJones, Sick, crystals, from_atoms

import bench.record
from bench import evaluations
from bench.chgnet_peer import CHGNet
from bench.engine_growth import shape
from bench.measure import calls, interleaved
from bench.relaxers import MOST, Outcome, SickError, aligned, evaluate, with_ase, with_nvalchemi
from bench.starts import CLOSEST, KINDS, LARGE, Start, starts
from bench.toys import constant, eight_atom_cells
from dpa4sim.batch import Batch
from dpa4sim.potential import load

SAME_MINIMUM_EV = 1e-4
"""eV per atom between two ends with forces below 0.02 eV/Å in a Lennard-Jones crystal."""

EXACT = 1e-9
"""Å and eV: a rotation and its undoing in double precision."""

FINGERPRINT = "4c6d9e43622f71ed"
"""Of the hundred structures, positions to 1e-6 Å: counts are only comparable over the same set."""


@pytest.fixture(scope="module")
def hundred():
    return starts()


def crystal(**rest):
    return Start("crystal", "Ni4", crystals()["skewed"], **rest)


def test_the_set_has_its_kinds_and_elements(hundred):
    assert Counter(start.kind for start in hundred) == KINDS
    assert sum(KINDS.values()) == 100
    assert len({start.name for start in hundred}) == 100
    elements = {int(z) for start in hundred for z in start.atoms.numbers}
    assert elements <= load("seed").known_elements
    for start in hundred:
        bulk = start.kind in ("crystal", "pressure", "large")
        assert start.moves_cell == bulk == bool(start.atoms.pbc.all())
        assert (start.pressure_gpa > 0) == (start.kind == "pressure")
        assert (len(start.atoms) >= LARGE[0]) == (start.kind == "large")


def test_the_set_is_always_the_same(hundred):
    digest = hashlib.sha256()
    for start in hundred:
        for values in (start.atoms.positions, start.atoms.cell.array):
            digest.update((1e6 * values).round().astype(np.int64).tobytes())
        digest.update(f"{start.name} {start.pressure_gpa:.6f}".encode())
    assert digest.hexdigest()[:16] == FINGERPRINT


def test_no_contact_is_closer_than_stated(hundred):
    from ase.data import covalent_radii
    from ase.neighborlist import neighbor_list

    for start in hundred:
        if start.moves_cell:
            i, j, distance = neighbor_list("ijd", start.atoms, 3.0)
            radii = covalent_radii[start.atoms.numbers]
            assert (distance > CLOSEST * (radii[i] + radii[j])).all()


def test_turning_a_cell_changes_no_distance():
    atoms = crystals()["left_handed"]
    turned = aligned(atoms)
    assert np.abs(np.triu(turned.cell.array.T, 1)).max() < EXACT
    assert np.allclose(turned.get_all_distances(mic=True), atoms.get_all_distances(mic=True))
    model = LennardJones()
    energies = [float(model(from_atoms(one)).energy[0]) for one in (atoms, turned)]
    assert energies[0] == pytest.approx(energies[1], abs=EXACT)


@pytest.mark.parametrize("pressure_gpa", [0.0, 10.0])
def test_all_optimisers_reach_the_same_minimum(pressure_gpa):
    model, start = LennardJones(), crystal(pressure_gpa=pressure_gpa)
    ends = [
        with_ase(FIRE, model, start),
        with_ase(BFGS, model, start),
        with_nvalchemi(model, start),
    ]
    assert all(end.converged and 1 < end.evaluations < MOST for end in ends)
    enthalpies = [end.enthalpy for end in ends]
    assert np.ptp(enthalpies) < SAME_MINIMUM_EV
    best = evaluations.with_dpa4sim("fire", model, [start])[0]
    assert best.evaluations == ends[0].evaluations
    assert best.enthalpy == pytest.approx(enthalpies[0], abs=EXACT)


def test_a_fixed_cell_stays_with_every_optimiser():
    slab = ase.build.fcc111("Cu", (1, 1, 3), a=3.6, vacuum=6.0)
    slab.rattle(0.05, seed=1)
    start = Start("slab", "Cu3", slab, moves_cell=False)
    ends = [with_ase(FIRE, LennardJones(), start), with_nvalchemi(LennardJones(), start)]
    assert all(end.converged for end in ends)
    assert abs(ends[0].enthalpy - ends[1].enthalpy) < SAME_MINIMUM_EV


@pytest.mark.parametrize("field", ["energy", "forces", "stress"])
def test_a_sick_structure_is_a_failure_on_every_side(field):
    places = [[0, 0, 0], [1.8, 1.8, 0], [1.8, 0, 1.8], [0, 1.8, 1.8]]
    atoms = Atoms([Sick.MARK] * 4, places, cell=[3.6] * 3, pbc=True)
    atoms.rattle(0.05, seed=0)
    start = Start("crystal", "sick", atoms)

    def model():
        return Sick(LennardJones(), field, float("nan"), from_call=3)

    for end in (with_ase(FIRE, model(), start), with_nvalchemi(model(), start)):
        assert not end.converged
        assert end.evaluations == 3
        assert np.isnan(end.enthalpy)
        assert "finite" in end.reason


def test_a_cell_that_leaves_its_limits_is_sick():
    system = from_atoms(crystal().atoms)
    with pytest.raises(SickError, match="volume"):
        evaluate(LennardJones(), system, 10 * float(system.volume[0]))


def test_summary_counts_failures_and_bad_ends():
    good, worse = Outcome(10, True, -1.0, ""), Outcome(20, True, -0.99, "")
    failed = Outcome(500, False, -2.0, "out of evaluations")
    wanted = [replace(crystal(), name=str(k)) for k in range(3)]
    table = {"ase_fire": [worse, good, failed], "lbfgs": [good, worse, failed]}
    rows = evaluations.summary(table, wanted)
    assert rows["lbfgs"]["total"] == 530
    assert rows["lbfgs"]["share_of_ase_fire"] == 1.0
    assert [rows[m]["above_best"] for m in table] == [1, 1]
    assert rows["lbfgs"]["failed"] == {"2": "out of evaluations"}
    assert np.isnan(evaluations.best_known(table)[2])


def test_the_cache_knows_a_changed_structure(tmp_path):
    start = crystal()
    moved = replace(start, atoms=start.atoms.copy())
    moved.atoms.positions[0, 0] += 1e-3
    keys = {evaluations.fingerprint(s) for s in (start, moved, replace(start, pressure_gpa=1.0))}
    assert len(keys) == 3
    cache = evaluations.Cache(tmp_path, "lj", "ase_fire")
    cache.add("a", Outcome(3, True, -1.0, "converged"))
    assert cache.read() == {"a": Outcome(3, True, -1.0, "converged")}


def test_times_are_taken_in_turns():
    order: list[str] = []
    sides = {name: (lambda name=name: order.append(name)) for name in "ab"}
    interleaved(sides, rounds=2, repeats=2)
    assert "".join(order) == "ab" + "aabb" * 2


def test_reads_of_the_device_are_counted_by_name():
    x = torch.ones(3)
    found = calls(lambda: (x[x > 0], x.sum().item(), x + 1))
    assert found["reads_by_name"] == {"nonzero": 1, "_local_scalar_dense": 1}
    assert found["aten_calls"] == 5


def test_the_fit_finds_fixed_cost_and_slope():
    rows = [
        {"model": model, "optimizer": optimizer, "ladder": ladder, "atoms": n}
        | {"cpu_ms": 2 + 3e-3 * n, "us_per_atom": 1e3 * (2 + 3e-3 * n) / n}
        for model in ("free", "lennard-jones")
        for optimizer in ("fire", "lbfgs")
        for ladder in ("structures", "atoms")
        for n in (8, 800, 8000)
    ]
    fit = shape(rows)["atoms, free, lbfgs"]
    assert fit["fixed_ms"] == pytest.approx(2.0)
    assert fit["us_per_atom"] == pytest.approx(3.0)


def test_the_free_model_is_free_and_has_real_edges():
    batch = eight_atom_cells(2)
    model = constant(batch)
    assert calls(lambda: model(batch))["aten_calls"] == 0
    assert model(batch).edges.n_edges > 8 * batch.n_systems


STAND_IN = """
import numpy as np

class CHGNet:
    @classmethod
    def load(cls, use_device, verbose):
        print("noise on stdout")
        return cls()

    def graph_converter(self, structure):
        if len(structure) == 1:
            raise ValueError("isolated")
        return structure

    def predict_graph(self, graphs, task, batch_size):
        found = [
            {
                "e": np.float32(g.volume / len(g)),
                "f": g.cart_coords.astype(np.float32),
                "s": np.full((3, 3), len(g), np.float32),
            }
            for g in graphs
        ]
        return found[0] if len(found) == 1 else found
"""


def test_chgnet_answers_in_order_and_in_our_units(tmp_path, monkeypatch):
    """With a stand-in for the package; what its numbers mean is CHGNet's own affair."""
    import sys

    (tmp_path / "chgnet").mkdir()
    (tmp_path / "chgnet" / "__init__.py").write_text("")
    (tmp_path / "chgnet" / "model.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sizes = {"cubic": 32, "refused": 1, "skewed": 4}
    images = [crystals()[name] if name != "refused" else crystals()["primitive"] for name in sizes]
    assert [len(atoms) for atoms in images] == list(sizes.values())
    model = CHGNet(sys.executable)
    found = model(Batch.concatenate(from_atoms(atoms) for atoms in images))
    model.close()
    assert found.energy[[0, 2]].tolist() == pytest.approx(
        [images[0].get_volume(), images[2].get_volume()], rel=1e-6
    )
    assert torch.isnan(found.energy[1])
    assert torch.isnan(found.forces[32]).all()
    assert torch.allclose(found.forces[33:], torch.tensor(images[2].positions), atol=1e-5)
    assert float(found.stress[2, 0, 0]) == pytest.approx(4 / 160.21766, rel=1e-4)


QUICK = {
    "overhead": [],
    "dynamics": [],
    "engine_growth": [],
    "relaxation": [],
    "evaluations": ["--methods", "lbfgs", "fire"],
    "data_memory": [],
    "hull": [],
    "screening": [],
    "screen_speed": [],
    "steps": ["--size", "neo"],
}
ONE_ALLOCATOR = ("steps", "evaluations", "data_memory", "hull", "screening", "screen_speed")
SAYS = {"dynamics": "nvt", "data_memory": "growth_mb", "hull": "references", "screening": "ingest"}
SAYS |= {"screen_speed": "torchsim"}


@pytest.mark.parametrize("claim", QUICK)
def test_every_benchmark_runs(claim, monkeypatch, capsys):
    """The smoke run of each; it may write no record."""
    module = importlib.import_module(f"bench.{claim}")

    def refuse(*_):
        raise AssertionError("a smoke run is no measurement")

    monkeypatch.setattr(module, "save", refuse)
    monkeypatch.setattr(bench.record, "save", refuse)
    allocator = [] if claim in ONE_ALLOCATOR else ["--allocator", "default"]
    module.main(["--quick", *allocator, *QUICK[claim]])
    assert SAYS.get(claim, "lbfgs") in capsys.readouterr().out
