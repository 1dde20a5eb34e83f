import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.spacegroup.symmetrize import check_symmetry
from toy import (
    AseModel,
    LennardJones,
    Sick,
    crystals,
    from_atoms,
    packed,
    without_bulk,
)

from dpa4sim.batch import Batch
from dpa4sim.errors import ConfigError, DataError, ResumeError, Status
from dpa4sim.pool import pool, progress
from dpa4sim.pool.pack import join
from dpa4sim.relax.result import RelaxResult
from dpa4sim.relax.run import relax, relax_each
from dpa4sim.relax.terms import AT_ONCE, Terms
from dpa4sim.units import GPA_PER_EV_A3

NAN = float("nan")


def everything() -> list[Batch]:
    """Seven usable structures; the last two must keep their cell."""
    return [from_atoms(a) for a in (*crystals().values(), *without_bulk().values())]


FREE = [True] * 5 + [False] * 2


def with_bad_ones() -> tuple[list[Batch], dict[int, str]]:
    """Usable and unusable structures in turns, and what is wrong with the latter."""
    good = everything()
    lost = replace(good[0], positions=good[0].positions * NAN)
    flat = replace(good[1], cell=good[1].cell * torch.tensor([1.0, 1.0, 0.0]))
    twice = Batch.single(torch.zeros(2, 3), torch.tensor([29, 29]))
    structures = [lost, good[0], flat, good[5], twice, good[1]]
    return structures, {0: "not a finite", 2: "no volume", 3: "2 of 3", 4: "one site"}


def assert_same(ours: RelaxResult, theirs: RelaxResult) -> None:
    assert ours.status == theirs.status
    assert ours.steps == theirs.steps
    assert ours.energy == theirs.energy
    for mine, other in zip(ours.batches, theirs.batches, strict=True):
        assert torch.equal(mine.positions, other.positions)
        assert torch.equal(mine.cell, other.cell)


def test_results_are_those_of_ase_in_the_order_of_the_input():
    result = relax(LennardJones(), everything(), cell=FREE, max_steps=200, optimizer="fire")
    assert len(set(result.steps)) > 4
    for s, atoms in enumerate((*crystals().values(), *without_bulk().values())):
        atoms.calc = AseModel(LennardJones())
        start = atoms.get_volume() if FREE[s] else NAN
        optimizer = FIRE(FrechetCellFilter(atoms) if FREE[s] else atoms, logfile=None)
        optimizer.run(fmax=0.02, steps=200)
        system = result.batches[s]
        assert abs(atoms.positions - system.positions.numpy()).max() < 1e-8
        assert result.steps[s] == optimizer.nsteps
        assert result.evaluations[s] == optimizer.nsteps + 1
        assert result.energy[s] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        forces = (atoms.get_forces() ** 2).sum(1) ** 0.5
        assert result.fmax[s] == pytest.approx(forces.max(), abs=1e-7)
        assert result.residual[s] < 0.02
        assert result.status[s] is Status.CONVERGED
        if FREE[s]:
            assert result.stress_max[s] == pytest.approx(abs(atoms.get_stress()).max(), abs=1e-9)
            assert result.volume_change[s] == pytest.approx(atoms.get_volume() / start - 1)
    assert math.isnan(result.stress_max[6])
    assert math.isnan(result.volume_change[6])


@pytest.fixture(scope="module", params=[("fire", 37), ("lbfgs", 12)], ids=["fire", "lbfgs"])
def settings(request) -> dict:
    optimizer, max_steps = request.param
    return {"optimizer": optimizer, "max_steps": max_steps, "cell": FREE}


@pytest.fixture(scope="module")
def together(settings) -> RelaxResult:
    return relax(LennardJones(), everything(), **settings)


@pytest.mark.parametrize(("max_edges", "check_every"), [(1, 10), (2500, 3), (1e9, 64)])
def test_who_shares_the_working_batch_changes_no_bit(
    together, settings, monkeypatch, max_edges, check_every
):
    """Structures enter while others are half-way, and leave at different steps."""
    joined = []
    monkeypatch.setattr(pool, "join", lambda *states: joined.append(1) or join(*states))
    working = {"max_edges": max_edges, "check_every": check_every}
    in_turns = relax(LennardJones(), everything(), **working, **settings)
    assert_same(in_turns, together)
    assert max_edges != 2500 or joined, "nobody entered a batch that was under way"
    assert {Status.MAX_STEPS, Status.CONVERGED} == set(together.status)


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
@pytest.mark.parametrize("max_steps", [0, 1, 7, 13])
def test_max_steps_is_not_rounded_to_the_host_looks(max_steps, optimizer):
    settings = {"fmax": 1e-300, "cell": False, "max_steps": max_steps, "check_every": 5}
    result = relax(LennardJones(), everything(), optimizer=optimizer, **settings)
    assert result.steps == [max_steps] * 7
    assert result.evaluations == [max_steps + 1] * 7
    assert set(result.status) == {Status.MAX_STEPS}


def test_invalid_structures_are_named_and_stop_nobody():
    structures, wrong = with_bad_ones()
    result = relax(LennardJones(), structures, max_steps=30)
    alone = relax(LennardJones(), [structures[1], structures[5]], max_steps=30)
    for s, words in wrong.items():
        assert result.status[s] is Status.INVALID
        assert words in result.reasons[s]
        assert result.evaluations[s] == 0
        assert math.isnan(result.energy[s])
        assert torch.equal(result.batches[s].atomic_numbers, structures[s].atomic_numbers)
    assert [result.energy[1], result.energy[5]] == alone.energy
    assert [result.status[1], result.status[5]] == alone.status


def test_a_slab_may_relax_in_its_cell():
    structures = [everything()[5]]
    assert "Set cell=False" in relax(LennardJones(), structures).reasons[0]
    assert relax(LennardJones(), structures, cell=False).status == [Status.CONVERGED]


def test_strict_raises_about_an_invalid_structure():
    structures, _ = with_bad_ones()
    with pytest.raises(DataError, match=r"structure 0 \(Cu, 1 atoms\): .*not a finite"):
        relax(LennardJones(), structures, strict=True)


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
def test_a_sick_structure_is_marked_and_its_mates_are_as_alone(optimizer):
    structures = everything()[:5]
    numbers = torch.full_like(structures[2].atomic_numbers, Sick.MARK)
    structures[2] = replace(structures[2], atomic_numbers=numbers)
    settings = {"max_steps": 60, "optimizer": optimizer}
    healthy = relax(LennardJones(), structures, **settings)
    model = Sick(LennardJones(), "forces", NAN, from_call=8)
    result = relax(model, structures, **settings)
    assert result.status[2] is Status.NOT_FINITE
    assert f"(step {7 if optimizer == 'fire' else 8})" in result.reasons[2], "L-BFGS tries twice"
    assert math.isfinite(result.energy[2])
    mates = [0, 1, 3, 4]
    assert [result.energy[s] for s in mates] == [healthy.energy[s] for s in mates]
    assert [result.status[s] for s in mates] == [healthy.status[s] for s in mates]
    with pytest.raises(DataError, match=r"structure 2 \(Es8, 8 atoms\)|structure 2 \(Es4, 4 atoms"):
        relax(Sick(LennardJones(), "forces", NAN, 8), structures, strict=True, **settings)


def test_running_out_of_steps_is_no_error_when_strict():
    result = relax(LennardJones(), everything()[:2], max_steps=3, strict=True)
    assert result.status == [Status.MAX_STEPS] * 2


def test_the_model_is_not_called_for_the_finished():
    sizes = []

    def watched(batch: Batch):
        sizes.append(batch.n_systems)
        return model(batch)

    model = LennardJones()
    watched.cutoff, watched.device = model.cutoff, model.device
    result = relax(watched, everything(), cell=FREE, max_steps=200, check_every=10)
    used = sum(result.evaluations)
    assert used <= sum(sizes) <= used + 9 * len(result)
    assert sizes == sorted(sizes, reverse=True)
    sizes.clear()
    result = relax(watched, everything(), cell=FREE, max_steps=200)
    assert sum(sizes) == sum(result.evaluations), "on a processor nobody is asked in vain"


def test_one_batch_of_many_is_taken_apart():
    result = relax(LennardJones(), packed(crystals().values()), max_steps=2)
    assert [b.n_systems for b in result.batches] == [1] * 5
    assert len(relax(LennardJones(), [], max_steps=2)) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer": "lbgfs"}, "optimizer='lbgfs' is not known. Valid: lbfgs, fire"),
        ({"cell_filter": "exp"}, "Valid: frechet, unit"),
        ({"max_steps": -1}, "max_steps=-1"),
        ({"check_every": 0}, "check_every=0"),
        ({"max_edges": 0}, "max_edges=0"),
        ({"mask": [True] * 5}, "mask has 5 entries"),
        ({"mask": [True] * 6, "cell": False}, "cell=False lets none"),
        ({"hydrostatic": True, "constant_volume": True}, "leave"),
        ({"fmax": 0.0}, "fmax=0.0 can never be reached"),
        ({"fmax": NAN}, "fmax=nan"),
        ({"cell": [True]}, "1 entries for 7 structures"),
    ],
)
def test_settings_that_cannot_be_used(settings, words):
    with pytest.raises(ConfigError, match=words):
        relax(LennardJones(), everything(), **settings)


def test_charge_for_some_only_is_refused_before_anything_runs():
    structures = everything()
    structures[3] = replace(structures[3], charge=torch.ones(1))
    with pytest.raises(DataError, match="1 of 7 structures carry 'charge'"):
        relax(LennardJones(), structures, cell=False)


def test_progress_lines(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    relax(LennardJones(), everything(), cell=FREE, max_steps=12, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "relax: 7/7, " in err.splitlines()[-1]
    assert "atom-steps/s" in err
    relax(LennardJones(), everything(), cell=FREE, max_steps=12)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("first", ["import dpa4sim.relax.fire", "dpa4sim.relax"])
def test_the_public_name_can_be_called_whatever_was_imported_before(first):
    """Python binds `dpa4sim.relax` to the package as soon as a part of it is imported."""
    code = f"import dpa4sim; {first}; dpa4sim.relax(None, []); dpa4sim.relax(None, [])"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_to_atoms():
    result = relax(LennardJones(), everything(), cell=FREE, max_steps=5)
    for atoms, system in zip(result.to_atoms(), result.batches, strict=True):
        assert abs(atoms.positions - system.positions.numpy()).max() == 0
        assert abs(atoms.cell.array - system.cell[0].numpy()).max() == 0
    energies = [atoms.get_potential_energy() for atoms in result.to_atoms()]
    assert energies == result.energy


def test_structures_of_other_libraries_are_taken():
    atoms = [crystals()["left_handed"], without_bulk()["molecule"]]
    result = relax(LennardJones(), atoms, cell=[True, False], max_steps=5)
    ours = relax(LennardJones(), [from_atoms(a) for a in atoms], cell=[True, False], max_steps=5)
    assert_same(result, ours)


def test_structures_of_any_number_stream_through():
    """An iterator without end: what is read follows what has ended."""
    read = []

    def endless():
        while True:
            for system in everything()[:5]:
                read.append(1)
                yield system

    stream = relax_each(LennardJones(), endless(), max_edges=3000)
    first = [next(stream) for _ in range(12)]
    stream.close()
    assert len(read) < 2 * AT_ONCE
    assert {record.status for record in first} == {Status.CONVERGED}
    assert len({record.index for record in first}) == 12


def test_structures_before_an_error_are_taken_before_it_is_raised():
    def broken():
        yield from everything()[:3]
        raise KeyError("of whoever makes them")

    read = Terms(False, 0.0, None, None, False, False, False).jobs(broken(), LennardJones())
    assert [next(read).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(read)


def test_each_structure_has_its_own_pressure():
    systems = [from_atoms(crystals()["cubic"])] * 3
    result = relax(LennardJones(), systems, pressure_gpa=[0.0, 5.0, 20.0], fmax=1e-3)
    for batch, prediction, gpa in zip(
        result.batches, result.predictions, (0.0, 5.0, 20.0), strict=True
    ):
        found = -float(prediction.stress[0].diagonal().mean()) * GPA_PER_EV_A3
        assert found == pytest.approx(gpa, abs=0.02)
        assert batch.volume > 0
    assert result.volume_change[0] > result.volume_change[1] > result.volume_change[2]


def test_a_pressure_needs_a_cell():
    slab = everything()[5]
    result = relax(LennardJones(), [slab], cell=False, pressure_gpa=1.0)
    assert result.status == [Status.INVALID]
    assert "pressure_gpa cannot be used, for its cell stands still" in result.reasons[0]


def test_fixed_atoms_of_ase_are_obeyed():
    atoms = without_bulk()["slab"]
    atoms.set_constraint(FixAtoms(indices=[0, 1, 2, 3]))
    result = relax(LennardJones(), [atoms], cell=False)
    moved = (result.batches[0].positions - torch.tensor(atoms.positions)).norm(dim=1)
    assert moved[:4].max() == 0
    assert moved[4:].min() > 1e-3
    assert result.status == [Status.CONVERGED]
    ours = relax(LennardJones(), [from_atoms(atoms)], cell=False, fixed_atoms=[[0, 1, 2, 3]])
    assert_same(ours, result)
    atoms.set_constraint(FixCartesian(0))
    refused = relax(LennardJones(), [atoms], cell=False)
    assert "the constraint FixCartesian is not obeyed here" in refused.reasons[0]


def test_symmetry_is_kept_when_asked():
    atoms = bulk("Ti", "hcp", a=3.1, c=4.2) * (2, 2, 1)
    result = relax(LennardJones(), [atoms, crystals()["skewed"]], fix_symmetry=True)
    assert result.status == [Status.CONVERGED] * 2
    relaxed = result.to_atoms()[0]
    assert check_symmetry(relaxed, 1e-6).number == 194


def test_a_directory_keeps_what_is_done(tmp_path):
    settings = {"cell": FREE, "directory": tmp_path / "run"}
    calm = relax(LennardJones(), everything(), cell=FREE)
    assert_same(relax(LennardJones(), everything(), **settings), calm)
    with pytest.raises(ResumeError, match="begun with fmax"):
        relax(LennardJones(), everything(), fmax=0.1, **settings)
    with pytest.raises(ResumeError, match="not those that this directory was begun with"):
        relax(LennardJones(), everything()[:4], cell=True, directory=tmp_path / "run")
