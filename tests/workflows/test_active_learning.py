"""Active learning on EMT: what is picked, what a killed campaign does, and what is learnt."""

from __future__ import annotations

import json
from types import ModuleType

import numpy as np
import pytest
import torch
import training
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import write
from kill import killed
from models import random_potential

from dpa4sim.config import DPA4Config
from dpa4sim.ensemble import Ensemble
from dpa4sim.errors import ConfigError, DataError

SETTINGS = {
    "run": {"steps": 20, "validate_every": 10, "log_every_s": 1e9},
    "data": {"valid_fraction": 0.2, "max_edges": 900},
    "model": training.MODEL,
    "optimizer": {"lr": 3e-3, "average": 0.9},
    "schedule": {"warmup_steps": 2},
}


@pytest.fixture(scope="module")
def flow(recipe) -> ModuleType:
    return recipe("active_learning")


def shaken(count: int, seed: int = 0, amount: float = 0.06) -> list[Atoms]:
    """Crystals of copper and gold."""
    noise = np.random.default_rng(seed)
    found = []
    for index in range(count):
        atoms = bulk(("Cu", "Au")[index % 2], cubic=True)
        atoms.positions += noise.normal(0, amount, (4, 3))
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def frames(flow) -> list[Atoms]:
    return [flow.labelled(atoms, EMT()) for atoms in shaken(12)]


@pytest.fixture(scope="module")
def committee() -> Ensemble:
    config = DPA4Config(species=("Cu", "Au"), **training.MODEL)
    return Ensemble([random_potential(config, seed=seed) for seed in range(2)])


def plan(flow, **changes):
    asked = {
        "settings": SETTINGS,
        "members": 2,
        "rounds": 2,
        "picks": 3,
        "finetune_steps": 10,
        "steps": 20,
        "temperature": 300.0,
        "max_force_spread": 5.0,
    }
    return flow.Plan(**asked | changes)


@pytest.fixture(scope="module")
def learnt(flow, frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learnt")
    return flow.learn(plan(flow), frames, shaken(2, seed=5), EMT, folder), folder


def test_every_round_knows_more_frames(learnt):
    found, folder = learnt
    assert [each.labelled for each in found] == [10, 13]
    assert found[0].visited > 3
    assert found[1].visited == 0
    assert all(np.isfinite([e.force_mae, e.energy_mae, e.force_spread]).all() for e in found)
    assert (folder / "round-01" / "committee.safetensors").exists()


def test_the_labels_are_the_teachers(flow, learnt):
    _, folder = learnt
    for atoms in flow._all(folder / "labelled-00.extxyz"):
        again = flow.labelled(atoms, EMT())
        np.testing.assert_allclose(atoms.get_forces(), again.get_forces(), atol=1e-6)
        assert atoms.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-6)


def test_test_frames_are_never_trained_on(flow, learnt):
    _, folder = learnt
    first, test = (flow._all(folder / f"{name}.extxyz") for name in ("first", "test"))
    assert (len(first), len(test)) == (10, 2)
    for atoms in test:
        assert all(np.abs(atoms.positions - each.positions).max() > 1e-3 for each in first)


def test_a_finished_campaign_computes_nothing(flow, frames, learnt, monkeypatch):
    found, folder = learnt
    monkeypatch.setattr(flow, "train_members", lambda *a: pytest.fail("trained again"))
    assert repr(flow.learn(plan(flow), frames, shaken(2, seed=5), EMT, folder)) == repr(found)


@pytest.mark.slow
def test_a_killed_campaign_goes_on(flow, frames, learnt, tmp_path):
    found, _ = learnt

    def work(folder):
        return flow.learn(plan(flow), frames, shaken(2, seed=5), EMT, folder)

    folders = killed(work, tmp_path, times=4, lasts=8.0, seed=3)
    assert repr(work(folders[-1])) == repr(found)


def test_another_plan_in_the_same_folder(flow, frames, learnt):
    _, folder = learnt
    with pytest.raises(ConfigError, match=r"begun with picks = 3, and now it is 4\. Give the same"):
        flow.learn(plan(flow, picks=4), frames, [], EMT, folder)


def test_the_most_uncertain_are_picked_and_unlike_each_other(flow, committee):
    """Eight frames are shortlisted for two: never a perfect crystal, and no frame twice."""
    calm, torn = shaken(8, amount=0.0), shaken(3, seed=2, amount=0.3)
    spread = flow.spreads(committee, calm + torn)
    assert spread[8:].min() > spread[:8].max() + 0.01
    asked = plan(flow, picks=2)
    picked = flow.pick(asked, committee, [*calm, *torn, *torn, *torn], 0)
    assert picked[0] == int(np.argmax(spread))
    assert min(picked) >= 8
    assert (picked[0] - 8) % 3 != (picked[1] - 8) % 3


def test_random_picks_are_those_of_the_seed(flow, committee):
    asked = plan(flow, choose="random")
    some = [flow.pick(asked, committee, shaken(20), number) for number in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert len(set(some[0])) == 3


def test_farthest_points_by_hand(flow):
    line = np.array([[0.0], [0.1], [5.0], [2.4], [4.9]])
    assert flow.farthest(line, 3) == [0, 2, 3]
    assert sorted(flow.farthest(line, 5)) == list(range(5))


def test_spreads_are_those_of_the_committee(flow, committee):
    structures = shaken(5)
    found = flow.spreads(committee, structures)
    for atoms, spread in zip(structures, found, strict=True):
        alone = committee.evaluate(atoms).force_spread.max()
        assert float(torch.abs(alone - spread)) < 1e-10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"members": 1}, r"members=1\. Give 2 or more"),
        ({"choose": "best"}, r"choose='best'\. Valid: uncertain, random"),
        ({"test_fraction": 1.0}, r"test_fraction=1\.0\. Give a share"),
    ],
)
def test_plans_without_sense(flow, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan(flow, **changes)


def test_too_few_frames_and_no_teacher(flow, frames, tmp_path):
    with pytest.raises(DataError, match="1 frames leave none to train or to test on"):
        flow.learn(plan(flow), frames[:1], [], EMT, tmp_path)
    with pytest.raises(ConfigError, match=r"There is no teacher 'ase:Nobody'.*MODULE:NAME"):
        flow.find_teacher("ase:Nobody")


def test_the_recipe_runs(flow, frames, tmp_path, capsys):
    import tomli_w

    (tmp_path / "run.toml").write_text(tomli_w.dumps(SETTINGS))
    write(tmp_path / "frames.extxyz", frames)
    write(tmp_path / "start.extxyz", shaken(1, seed=5))
    words = [tmp_path / "run.toml", tmp_path / "frames.extxyz", tmp_path / "start.extxyz"]
    words += ["-o", tmp_path / "out", "--members", 2, "--rounds", 1]
    assert flow.main([str(word) for word in words]) == 0
    assert "F (meV/Å)" in capsys.readouterr().out
    (first,) = json.loads((tmp_path / "out" / "learning.json").read_text())
    assert first["labelled"] == 10
    assert (tmp_path / "out" / "learning.png").read_bytes().startswith(b"\x89PNG")
