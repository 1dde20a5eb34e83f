"""Ensembles: means and spreads by hand, one file, and the limit as a flag that harms nobody."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from kill import killed
from models import BASE, SPECIES, crystal, largest, molecule, random_model, random_potential
from safetensors import safe_open
from safetensors.torch import save_file
from screening import settings
from toy import CPU, LennardJones, from_atoms

import dpa4sim
from dpa4sim import ensemble as module
from dpa4sim.batch import Batch, dot, max_over_atoms
from dpa4sim.ensemble import Ensemble
from dpa4sim.errors import ConfigError, DataError, ModelError, ResumeError, Status
from dpa4sim.pool.checkpoint import model_fingerprint
from dpa4sim.potential import EnergyModel, Potential, Prediction
from dpa4sim.screen.candidate import Candidate
from dpa4sim.screen.run import init, run
from dpa4sim.screen.settings import Model
from dpa4sim.screen.table import RESULTS, read_part, to_table, write_part

TOLERANCE = 1e-13
"""eV, eV/Å: means of the same float64 numbers in another order."""

SLOPE = 1e-6
"""eV/Å: a central difference of a float64 energy over 1e-4 Å."""


def members(n: int = 3, spread: float = 0.02) -> list[Potential]:
    """Networks that differ by a little noise in every weight."""
    found = []
    for seed in range(n):
        model = random_model(BASE)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                shape, kind = parameter.shape, parameter.dtype
                parameter.mul_(1 + spread * torch.randn(shape, generator=noise, dtype=kind))
        found.append(Potential(model, dtype="float64", card={"seed": seed}))
    return found


@pytest.fixture(scope="module")
def committee() -> Ensemble:
    return Ensemble(members())


def packed() -> Batch:
    return Batch.concatenate([molecule(), crystal()])


def test_it_is_an_energy_model(committee):
    assert isinstance(committee, EnergyModel)
    assert committee.cutoff == BASE.cutoff
    assert committee.known_elements == frozenset(BASE.atomic_numbers)


def test_means_and_spreads_by_hand(committee):
    batch = packed()
    said = [member(batch) for member in committee.members]
    found = committee(batch)
    for name in ("energy", "forces", "atomic_energies"):
        mean = np.mean([getattr(each, name).numpy() for each in said], 0)
        np.testing.assert_allclose(getattr(found, name), mean, atol=TOLERANCE)
    stress = np.mean([each.stress[1].numpy() for each in said], 0)
    np.testing.assert_allclose(found.stress[1], stress, atol=TOLERANCE)
    forces = np.stack([each.forces.numpy() for each in said])
    spread = np.sqrt(((forces - forces.mean(0)) ** 2).sum(2).mean(0))
    np.testing.assert_allclose(found.force_spread, spread, atol=TOLERANCE)
    energies = np.stack([each.energy.numpy() for each in said])
    np.testing.assert_allclose(
        found.energy_spread, energies.std(0) / batch.n_atoms.numpy(), atol=TOLERANCE
    )
    assert spread.min() > 1e-3


def test_the_mean_force_is_the_slope_of_the_mean_energy(committee):
    start, found, step = crystal(), committee(crystal()), 1e-4
    push = torch.zeros_like(start.positions)
    push[2, 1] = step
    ahead, back = (
        float(committee(start.with_geometry(start.positions + s * push, start.cell)).energy[0])
        for s in (1, -1)
    )
    assert -(ahead - back) / (2 * step) == pytest.approx(float(found.forces[2, 1]), abs=SLOPE)


def test_neighbours_are_searched_once(committee, monkeypatch):
    calls = []
    search = module.neighbors
    monkeypatch.setattr(module, "neighbors", lambda *a: calls.append(a) or search(*a))
    monkeypatch.setattr("dpa4sim.potential.neighbors", lambda *a: pytest.fail("searched again"))
    found = committee(packed())
    assert len(calls) == 1
    assert found.edges is not None


def test_a_batch_is_its_systems(committee):
    """To the rounding of the networks' matrix products; the spreads add nothing of their own."""
    batch = packed()
    together = committee(batch)
    for place, alone in enumerate(map(committee, (molecule(), crystal()))):
        rows = batch.system_idx == place
        assert largest(alone.force_spread - together.force_spread[rows]) < TOLERANCE
        assert largest(alone.forces - together.forces[rows]) < TOLERANCE
        assert largest(alone.energy_spread - together.energy_spread[place]) < TOLERANCE
        assert torch.equal(alone.uncertain, together.uncertain[place : place + 1])


def test_equal_members_have_no_spread():
    found = Ensemble([random_potential(BASE), random_potential(BASE)])(packed())
    assert torch.equal(found.force_spread, torch.zeros_like(found.force_spread))
    assert torch.equal(found.forces, random_potential(BASE)(packed()).forces)
    assert not Ensemble(members(), max_force_spread=1e-9)(packed()).uncertain.logical_not().any()


def test_one_file_holds_all_members(committee, tmp_path):
    path = tmp_path / "committee.safetensors"
    committee.save(path)
    again = dpa4sim.load(path, dtype="float64")
    assert isinstance(again, Ensemble)
    assert [member.card for member in again.members] == [{"seed": seed} for seed in range(3)]
    assert torch.equal(again(packed()).forces, committee(packed()).forces)
    assert again.fingerprint == committee.fingerprint
    assert list(tmp_path.iterdir()) == [path]


def test_several_paths_are_an_ensemble(committee, tmp_path):
    paths = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for path, member in zip(paths, committee.members, strict=True):
        member.save(path)
    again = dpa4sim.load(paths, dtype="float64")
    assert torch.equal(again(packed()).force_spread, committee(packed()).force_spread)
    single = dpa4sim.load(paths[0], dtype="float64")
    assert isinstance(single, Potential)


def test_a_file_that_cannot_be_written_leaves_the_one_before(committee, tmp_path, monkeypatch):
    path = tmp_path / "committee.safetensors"
    committee.save(path)
    before = path.read_bytes()

    def broken(tensors, partial, metadata):
        Path(partial).write_bytes(b"half")
        raise OSError("no room")

    monkeypatch.setattr(module, "save_file", broken)
    with pytest.raises(OSError, match="no room"):
        committee.save(path)
    assert path.read_bytes() == before


def test_verbs_of_one_network_say_what_to_do(committee, tmp_path):
    path = tmp_path / "committee.safetensors"
    committee.save(path)
    with pytest.raises(ModelError, match=r"holds 3 members, and this needs one network\. Save one"):
        dpa4sim.potential.load(path)


def test_damaged_files(committee, tmp_path):
    path = tmp_path / "committee.safetensors"
    committee.save(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    gone = next(name for name in state if name.startswith("1."))
    save_file({k: v for k, v in state.items() if k != gone}, path, metadata=header)
    with pytest.raises(ModelError, match=f"member 1 lacks the tensor '{gone[2:]}'"):
        dpa4sim.load(path)
    described = json.loads(header["dpa4sim"])
    del described["members"]
    save_file(state, path, metadata={"dpa4sim": json.dumps(described)})
    with pytest.raises(ModelError, match="is a damaged ensemble"):
        dpa4sim.load(path)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (replace(BASE, cutoff=5.0), r"cutoff: 4\.5 Å and 5 Å"),
        (replace(BASE, species=(*SPECIES, "Fe")), "elements: C, O, Si and C, Fe, O, Si"),
        (replace(BASE, charge_spin=True), "conditioning on charge and spin: False and True"),
    ],
)
def test_members_that_do_not_go_together(config, what):
    with pytest.raises(ModelError, match=f"Members 0 and 1 differ in their {what}"):
        Ensemble([random_potential(BASE), random_potential(config)])


def test_too_few_members_and_limits_without_sense(committee):
    with pytest.raises(ModelError, match="1 member has no spread"):
        Ensemble([random_potential(BASE)])
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"Give a positive number of eV/Å"):
            committee.limited(limit)
    with pytest.raises(ConfigError, match="needs an ensemble: one model has no spread"):
        dpa4sim.relax(random_potential(BASE), [bulk("Si")], max_force_spread=0.1)


PAIRS = LennardJones()


@dataclass(frozen=True)
class Doubtful:
    """Lennard-Jones pairs with the spread that an ensemble of two depths would have: |F| / 10."""

    pairs: LennardJones = PAIRS
    max_force_spread: float = math.inf
    has_spread: bool = True
    cutoff: float = 6.0
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        said = self.pairs(batch)
        spread = 0.1 * dot(said.forces, said.forces).sqrt()
        beyond = max_over_atoms(spread, batch) > self.max_force_spread
        return replace(said, force_spread=spread, energy_spread=0.1 * said.energy, uncertain=beyond)

    def limited(self, max_force_spread: float) -> Doubtful:
        return replace(self, max_force_spread=max_force_spread)


LIMIT = 0.3
"""eV/Å; forces of 3 eV/Å, which `torn` has and `calm` has not."""


def calm() -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.5, cubic=True)
    atoms.positions += 0.05 * np.random.default_rng(0).normal(size=(4, 3))
    return atoms


def torn() -> Atoms:
    """Two atoms that are far too near each other."""
    atoms = calm()
    atoms.positions[1] *= 0.8
    return atoms


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_relaxation_stops_where_the_members_disagree(optimizer):
    settings = {"optimizer": optimizer, "fmax": 0.01, "progress": False}
    alone = dpa4sim.relax(Doubtful(), [calm()], **settings)
    both = dpa4sim.relax(Doubtful(), [torn(), calm()], max_force_spread=LIMIT, **settings)
    assert both.status == [Status.UNCERTAIN, Status.CONVERGED]
    assert both.reasons[0] == f"{Status.UNCERTAIN.sentence} (step 0)"
    assert torch.equal(both.batches[1].positions, alone.batches[0].positions)
    assert both.energy[1] == alone.energy[0]


@pytest.mark.parametrize("optimizer", ["lbfgs", "fire"])
def test_it_stays_at_the_last_geometry_below_the_limit(optimizer):
    """Forces that point the wrong way lead to larger ones."""
    settings = {"optimizer": optimizer, "cell": False, "progress": False, "max_steps": 60}
    start = torn()
    limit = float(Doubtful()(from_atoms(start)).force_spread.max())
    model = Uphill(Doubtful())
    found = dpa4sim.relax(model, [start, calm()], max_force_spread=1.01 * limit, **settings)
    assert found.status[0] == Status.UNCERTAIN
    assert found.steps[0] >= 1
    assert float(model(found.batches[0]).force_spread.max()) <= 1.01 * limit
    assert float(found.predictions[0].force_spread.max()) <= 1.01 * limit


@dataclass(frozen=True)
class Uphill:
    """A model whose forces point the wrong way: every step makes matters worse."""

    model: Doubtful
    cutoff: float = 6.0
    has_spread: bool = True
    device: torch.device = CPU

    def __call__(self, batch: Batch) -> Prediction:
        said = self.model(batch)
        return replace(said, energy=-said.energy, forces=-said.forces)

    def limited(self, max_force_spread: float) -> Uphill:
        return replace(self, model=self.model.limited(max_force_spread))


def test_strict_raises():
    with pytest.raises(DataError, match=r"structure 0 \(Cu4, 4 atoms\): the members of the"):
        dpa4sim.relax(Doubtful(), [torn()], max_force_spread=LIMIT, strict=True, progress=False)


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
def test_dynamics_stop_where_the_members_disagree(ensemble):
    settings = {"ensemble": ensemble, "steps": 30, "temperature": 5.0, "progress": False}
    settings |= {"thermostat": "bussi"}
    alone = dpa4sim.md(Doubtful(), [calm()], seed=3, **settings)
    both = dpa4sim.md(Doubtful(), [calm(), torn()], max_force_spread=LIMIT, seed=[3, 4], **settings)
    assert [run.status for run in both] == [Status.COMPLETED, Status.UNCERTAIN]
    assert both[1].reason == f"{Status.UNCERTAIN.sentence} (step 0)"
    assert torch.equal(both[0].batch.positions, alone[0].batch.positions)
    settings |= {"temperature": 3e4, "steps": 300}
    (hot,) = dpa4sim.md(Doubtful(), [calm()], max_force_spread=LIMIT, **settings)
    assert hot.status == Status.UNCERTAIN
    assert 0 < hot.steps < 300
    assert float(hot.prediction.force_spread.max()) <= LIMIT


def test_a_killed_relaxation_goes_on(tmp_path):
    starts = [calm(), torn(), calm() * (1, 1, 2)]

    def work(folder, limit=LIMIT):
        return dpa4sim.relax(
            Doubtful(),
            starts,
            max_force_spread=limit,
            progress=False,
            max_edges=2e4,
            directory=folder,
            checkpoint_every_s=0.0,
        )

    whole = work(tmp_path / "whole")
    folders = killed(work, tmp_path, times=3, lasts=0.5, seed=1)
    again = work(folders[-1])
    assert again.status == whole.status
    for one, other in zip(again.batches, whole.batches, strict=True):
        assert torch.equal(one.positions, other.positions)
    for one, other in zip(again.predictions, whole.predictions, strict=True):
        assert torch.equal(one.force_spread, other.force_spread)
    with pytest.raises(ResumeError, match="max_force_spread"):
        work(folders[-1], 2 * LIMIT)


def test_a_screen_flags_the_uncertain_and_says_how_large_the_spread_is(tmp_path):
    asked = settings()
    asked = replace(asked, model=Model(hash=model_fingerprint(Doubtful())))
    asked = replace(asked, relax=replace(asked.relax, max_force_spread=LIMIT))
    bad = torn()
    bad.numbers[:2] = 28
    candidates = [Candidate(f"c{i}", f"given#{i}", a) for i, a in enumerate((calm(), bad))]
    with init(tmp_path, asked, Doubtful(), candidates, progress=False) as campaign:
        run(campaign, Doubtful(), progress=False)
        rows = campaign.results().to_pylist()
    assert [row["status"] for row in rows] == ["converged", "uncertain"]
    assert rows[1]["flags"] == ["uncertain"]
    assert rows[0]["force_spread"] < LIMIT < rows[1]["force_spread"]


def test_parts_of_a_campaign_of_before_have_no_spread(tmp_path):
    known = {"id": 7, "name": "old", "status": "converged"}
    old = to_table([known]).drop_columns(["force_spread"])
    found = read_part(tmp_path / "p", *write_part(tmp_path / "p", old), None)
    assert found.schema == RESULTS
    assert found.to_pylist()[0] == dict.fromkeys(RESULTS.names) | known


def test_the_real_thing_stops_too(committee):
    """With the spread of the start as the limit, the members' own disagreement decides."""
    start = crystal()
    limit = float(committee(start).force_spread.max())
    settings = {"max_steps": 0, "progress": False, "max_edges": 2e4}
    for factor, status in ((0.99, Status.UNCERTAIN), (1.01, Status.MAX_STEPS)):
        found = dpa4sim.relax(committee, start, max_force_spread=factor * limit, **settings)
        assert found.status == [status]


def test_what_tells_ensembles_apart(committee):
    names = {
        model_fingerprint(each)
        for each in (
            committee,
            Ensemble(committee.members[:2]),
            Ensemble(committee.members[::-1]),
            committee.limited(0.5),
        )
    }
    assert len(names) == 4


def test_with_another_term_the_spread_stays(committee):
    total = committee + LennardJones()
    assert torch.equal(total(packed()).force_spread, committee(packed()).force_spread)
    assert total.limited(1e-9)(packed()).uncertain.all()
    assert not total.limited(1e9)(packed()).uncertain.any()
