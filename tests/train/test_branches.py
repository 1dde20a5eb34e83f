"""Training on several sets at once: the draws, the gradient, whole runs, and what is refused."""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
import training
from kill import killed
from models import largest
from safetensors.torch import load_file

import dpa4sim
from dpa4sim.branches import Branches, branch_names, load_branches
from dpa4sim.data.writer import write_store
from dpa4sim.errors import ConfigError, DataError, ResumeError
from dpa4sim.model import DPA4
from dpa4sim.model.branches import BranchedDPA4
from dpa4sim.model.emfa import EMFA
from dpa4sim.train.branch_feed import BranchCursor, BranchFeed
from dpa4sim.train.branch_run import BranchRun, combined
from dpa4sim.train.branches import BranchTrainer, open_branches, probabilities
from dpa4sim.train.compiled import prepare
from dpa4sim.train.directory import read_state
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.run import train
from dpa4sim.train.settings import read_settings

from .test_ranks import SUM_TOLERANCE, in_processes
from .test_run import assert_same, weights

GRADIENT = 1e-9
"""Two float64 orders of the same sums."""
FITTED = 1e-6
"""eV; two least squares fits of energies around 1000 eV."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """Copper with gold; and gold alone, with energies of another zero."""
    folder = tmp_path_factory.mktemp("data")
    found = {"alloy": training.store(folder / "alloy.h5")}
    gold = [frame for frame in training.frames(24, seed=7) if 79 in frame.system.atomic_numbers]
    for frame in gold:
        object.__setattr__(frame, "energy", frame.energy + 1000.0 * len(frame.forces))
    write_store(folder / "gold.h5", gold, cutoff=training.MODEL["cutoff"])
    return found | {"gold": folder / "gold.h5"}


def settings(sets: dict[str, Path], steps: int = 12, **tables):
    plain = training.settings(Path("none.h5"), steps, **tables)
    del plain["data"]["train"]
    named = {name: {"train": str(path)} for name, path in sets.items()}
    for name, more in tables.get("branches", {}).items():
        named[name] |= more
    return {**plain, "branches": named}


def run_of(sets, folder: Path, **tables) -> BranchRun:
    asked = read_settings(settings(sets, **tables))
    return BranchRun(asked, *open_branches(asked), Ranks(), folder, None, True)


def trainer_of(sets, folder: Path, **tables) -> BranchTrainer:
    found = run_of(sets, folder, **tables).trainer
    assert isinstance(found, BranchTrainer)
    return found


@pytest.fixture(scope="module")
def calm(sets, tmp_path_factory):
    """One run from the first step to the last."""
    return train(settings(sets), directory=tmp_path_factory.mktemp("run") / "calm", progress=False)


def test_one_branch_is_the_plain_run_bit_for_bit(sets, tmp_path):
    several = {"batches_per_step": 2, "max_edges": 400}
    asked = training.settings(sets["alloy"], data=several)
    train(asked, directory=tmp_path / "plain", progress=False)
    one = settings({"alloy": sets["alloy"]}, data=several, sharing={"head": "own"})
    train(one, directory=tmp_path / "one", progress=False)
    plain = weights(tmp_path / "plain")
    branch = {k.partition("/")[2]: v for k, v in weights(tmp_path / "one").items()}
    assert plain.keys() == branch.keys()
    assert all(torch.equal(value, branch[name]) for name, value in plain.items())


def test_the_gradient_of_a_step_is_the_weighted_sum_of_its_branches(sets, tmp_path):
    """Three batches, two of one branch, against each branch's own loss."""
    one = trainer_of(sets, tmp_path, run={"dtype": "float64"}, data={"batches_per_step": 3})
    plans = ((plan, read) for plan, read in one.feed.steps(one.cursor, 40))
    plan, batches = next(pair for pair in plans if pair[0].branches.count("gold") == 1)
    expected = {}
    for name, share in (("alloy", 2 / 3), ("gold", 1 / 3)):
        one.model.zero_grad()
        total = torch.tensor(plan.labels_of[name], dtype=torch.float64)
        for branch, labelled in zip(plan.branches, batches, strict=True):
            if branch == name:
                one.choose(branch, 1.0)
                one.share(one.predict(labelled), total).backward()
        for key, parameter in one.model.named_parameters():
            if parameter.grad is not None:
                expected[key] = expected.get(key, 0.0) + share * parameter.grad
    moved = []
    one._move = moved.append
    one._step(plan, batches)
    found = {k: p.grad for k, p in one.model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert max(largest(found[k] - expected[k]) for k in found) < GRADIENT
    assert any(k.startswith("head.modulation") for k in found)
    assert float(moved[0]) > 0


def test_gradient_of_the_prepared_network_is_autograds(sets, tmp_path):
    one = trainer_of(sets, tmp_path, run={"dtype": "float64"})
    plan, batches = next(iter(one.feed.steps(one.cursor, 1)))
    one._move, found = (lambda loss: None), []
    for hand_written in (True, False):
        one.model.hand_written = hand_written
        one._step(plan, batches)
        found.append({n: p.grad for n, p in one.model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert max(largest(found[0][name] - found[1][name]) for name in found[0]) < GRADIENT


def test_compiled_is_the_trunk_alone(sets, tmp_path):
    """The very passes that test_compiled.py checks for a plain network; the head is outside."""
    several = trainer_of(sets, tmp_path, run={"compile": True}).model
    passes = [module.passes for module in several.modules() if isinstance(module, EMFA)]
    plain = prepare(DPA4(several.config), compile=True)
    expected = [module.passes for module in plain.modules() if isinstance(module, EMFA)]
    assert passes == expected
    assert passes[0] is not None
    assert not any(isinstance(module, EMFA) for module in several.head.modules())


def test_each_branch_has_the_shifts_of_its_own_set(sets, tmp_path):
    model = run_of(sets, tmp_path, run={"dtype": "float64"}).trainer.model
    assert isinstance(model, BranchedDPA4)
    gold = model.config.species.index("Au")
    assert model.shifts[1, gold] - model.shifts[0, gold] == pytest.approx(1000.0, abs=1.0)
    alone = run_of({"alloy": sets["alloy"]}, tmp_path / "a").trainer.model
    assert torch.equal(alone.shifts[0], model.shifts[0])
    given = {"gold": {"energy_shifts": {"Au": 5.0}}}
    fixed = run_of(sets, tmp_path / "b", branches=given).trainer.model
    assert fixed.shifts[1, gold] == 5.0
    assert torch.equal(fixed.shifts[0], model.shifts[0])


def test_draws_follow_the_weights(sets, tmp_path):
    feed = trainer_of(sets, tmp_path, branches={"alloy": {"weight": 3}}).feed
    assert isinstance(feed, BranchFeed)
    drawn = [k for step in range(4000) for k in feed.drawn(step)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.03)
    assert drawn == [k for step in range(4000) for k in feed.drawn(step)]
    never = trainer_of(sets, tmp_path / "b", branches={"gold": {"weight": 0}}).feed
    assert {k for step in range(100) for k in never.drawn(step)} == {0}


def test_the_feed_goes_on_from_a_cursor(sets, tmp_path):
    """And every frame of a branch comes once in each of its epochs."""
    feed = trainer_of(sets, tmp_path, data={"max_edges": 400, "batches_per_step": 2}).feed
    plans = list(islice(feed._plans(BranchCursor()), 40))
    assert plans[-1].following.epoch >= 2
    again = list(islice(feed._plans(plans[10].following), 29))
    for one, other in zip(plans[11:], again, strict=True):
        assert one.branches == other.branches
        assert one.following == other.following
        assert all(map(np.array_equal, one.batches, other.batches))
    for name, member in feed.members.items():
        seen = [
            batch
            for plan in plans
            for branch, batch in zip(plan.branches, plan.batches, strict=True)
            if branch == name
        ]
        rows = np.concatenate(seen)[: len(member.frames)]
        assert sorted(rows) == sorted(member.frames)


def test_what_it_leaves_behind(calm, sets):
    names = {path.name for path in calm.directory.iterdir() if not path.name.startswith(".")}
    assert names == {
        "config.toml", "log.txt", "train.csv", "last.safetensors", "best.safetensors", "state.pt",
        "curves.png", "parity_alloy.png", "parity_gold.png", "report.json",
    }  # fmt: skip
    with (calm.directory / "train.csv").open(newline="") as file:
        units, *rows = csv.DictReader(file)
    assert units["valid_gold:energy_mae"] == "meV/atom"
    last = {name: float(rows[-1][f"valid_{name}"]) for name in ("alloy:force_mae", "force_mae")}
    assert last["alloy:force_mae"] > 0
    assert "gold: E" in (calm.directory / "log.txt").read_text()
    report = json.loads((calm.directory / "report.json").read_text())
    assert report["training_frames"] == 18 + 9
    assert report["validation"]["gold:energy_mae"] == calm.errors["gold:energy_mae"]
    assert isinstance(calm.potential, Branches)
    assert branch_names(calm.directory / "best.safetensors") == ("alloy", "gold")


def test_the_file_answers_for_each_branch(calm, sets):
    """Its errors are those of the potential on the branch's frames, computed anew."""
    asked = read_settings(settings(sets))
    _, valid = open_branches(asked)
    for name, part in valid.items():
        potential = dpa4sim.load(calm.directory / "best.safetensors", branch=name)
        assert potential.card["branch"] == name
        batch = part.store.batch(part.frames)
        error = (potential(batch.batch).energy - batch.energy) / batch.batch.n_atoms
        assert calm.errors[f"{name}:energy_mae"] == pytest.approx(
            1e3 * float(error.abs().mean()), rel=1e-4
        )
    assert potential.card["elements of its labels"] == "Au"


def test_branches_share_the_trunk(calm):
    stored = load_file(calm.directory / "best.safetensors")
    own = {name.partition("/")[2] for name in stored if not name.startswith("shared/")}
    assert all(name.startswith("head.") or name == "energy_shift" for name in own)
    assert {"shared/species_table", "gold/energy_shift"} <= set(stored)


def test_it_learns_both(sets, tmp_path):
    asked = settings(sets, 80, run={"validate_every": 40}, optimizer={"lr": 5e-3, "average": 0.9})
    result = train(asked, directory=tmp_path / "run", progress=False)
    with (tmp_path / "run" / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[1:]
    before = run_of(sets, tmp_path / "first")
    first = before._errors(before._averaged())
    for name in sets:
        error = float(rows[-1][f"valid_{name}:force_mae"])
        assert error < 0.7 * 1e3 * first[f"{name}:force_mae"]
    assert result.steps == 80


@pytest.mark.slow
def test_a_run_killed_goes_on_bit_for_bit(sets, tmp_path):
    options = {"validate_every": 4, "checkpoint_every_s": 0.0}
    asked = settings(sets, run=options, data={"max_edges": 400})

    def work(folder: Path) -> None:
        train(asked, directory=folder, progress=False)

    work(tmp_path / "calm")
    for folder in killed(work, tmp_path, times=3, lasts=4.0, seed=3):
        work(folder)
        assert_same(folder, tmp_path / "calm")


def test_a_checkpoint_holds_the_place_in_every_branch(sets, tmp_path):
    short = settings(sets, 7, run={"validate_every": 0}, data={"max_edges": 400})
    train(short, directory=tmp_path / "run", progress=False)
    state = read_state(tmp_path / "run")["trainer"]
    one = trainer_of(sets, tmp_path / "b", data={"max_edges": 400})
    one.load_state(state)
    reached = list(islice(one.feed._plans(BranchCursor()), 7))[-1].following
    assert one.cursor == reached
    assert one.state()["places"] == [list(place) for place in reached.places]


@pytest.mark.slow
def test_two_processes_equal_one(sets, tmp_path):
    """Heads of their own: a step that draws no batch of a branch must not move its head."""
    several = {"batches_per_step": 2, "max_edges": 400}
    asked = settings(sets, 6, data=several, sharing={"head": "own"})
    in_processes(asked, tmp_path / "two")
    train(asked, directory=tmp_path / "one", progress=False)
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=SUM_TOLERANCE)


def test_a_branch_may_have_loss_weights_of_its_own(sets, tmp_path):
    """Gold without stress: its loss asks for none."""
    frames = training.frames(8, seed=2)
    for frame in frames:
        object.__setattr__(frame, "stress", None)
    write_store(tmp_path / "plain.h5", frames, cutoff=training.MODEL["cutoff"])
    both = {"alloy": sets["alloy"], "plain": tmp_path / "plain.h5"}
    with pytest.raises(DataError, match=r"\[branches\.plain\].*no training frame has a label 'str"):
        train(settings(both), directory=tmp_path / "run", progress=False)
    weights_of = {"plain": {"virial": 0, "force": [3, 1]}}
    asked = settings(both, branches=weights_of)
    found = trainer_of(both, tmp_path / "a", branches=weights_of)
    assert found.losses["plain"].force == (3, 1)
    assert found.losses["alloy"].virial == (5.0,)
    result = train(asked, directory=tmp_path / "run", progress=False)
    assert np.isnan(result.errors["plain:stress_mae"])
    assert result.errors["stress_mae"] == pytest.approx(result.errors["alloy:stress_mae"])


def test_going_on_from_a_trained_model(calm, sets, tmp_path):
    """Both branches start as one branch of the file; its head's energies are re-fitted."""
    asked = settings(sets, 5, run={"validate_every": 0})
    asked["model"] = {}
    asked["finetune"] = {"model": str(calm.directory / "best.safetensors"), "branch": "alloy"}
    asked["finetune"]["freeze"] = ["blocks"]
    result = train(asked, directory=tmp_path / "run", progress=False)
    before = calm.potential["alloy"].model.state_dict()
    after = result.potential["gold"].model.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == (name.startswith("blocks.")), name
        if name == "species_table":
            break
    frozen = [name for name in before if name.startswith("blocks.")]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert largest(after["energy_shift"] - before["energy_shift"]) > 900


def test_a_shared_head_tells_branches_by_their_energies_only(sets, tmp_path):
    asked = settings(sets, 6, sharing={"head": "shared"})
    result = train(asked, directory=tmp_path / "run", progress=False)
    stored = load_file(result.directory / "best.safetensors")
    own = {name for name in stored if not name.startswith("shared/")}
    assert own == {"alloy/energy_shift", "gold/energy_shift"}


def test_settings_of_a_file(sets, tmp_path):
    """Paths are relative to it; one number is a weight; unknown words are told the nearest."""
    plain = settings({"alloy": Path("alloy.h5")}, branches={"alloy": {"virial": 0.0}})
    (tmp_path / "run.toml").write_text(tomli_w.dumps(plain))
    asked = read_settings(tmp_path / "run.toml", ["branches.alloy.weight=2"])
    assert asked.branches["alloy"].train == str(tmp_path / "alloy.h5")
    assert asked.branches["alloy"].virial == (0.0,)
    assert asked.branches["alloy"].weight == 2.0
    with pytest.raises(ConfigError, match=r"Did you mean 'branches\.alloy\.weight'"):
        read_settings(tmp_path / "run.toml", ["branches.alloy.weigth=2"])
    with pytest.raises(ConfigError, match=r"does not say 'branches\.metal\.train'"):
        read_settings(tmp_path / "run.toml", ["branches.metal.weight=2"])
    with pytest.raises(ConfigError, match=r"branches\.metal = 3 should be a table"):
        read_settings({**plain, "branches": {"metal": 3}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"train": "x.h5"}}, r"data\.train and \[branches\] are both given"),
        ({"data": {"energy_shifts": {"Cu": 1.0}}}, r"branches\.NAME\.energy_shifts"),
        ({"model": {"property_head": {"name": "gap"}}}, "Train the property by itself"),
        ({"model": {}, "finetune": {"model": "seed", "lora_rank": 2}}, "lora_rank"),
        ({"branches": {"a/b": {"train": "x.h5"}}}, "A branch cannot be called 'a/b'"),
        ({"branches": {"a": {"train": "x.h5", "weight": -1.0}}}, "must be at least 0"),
        ({"branches": {"a": {"train": "x.h5", "weight": 0.0}}}, "nothing to draw from"),
        ({"branches": {"a": {"train": "x.h5", "energy": [1, 2, 3]}}}, "one weight, or two"),
        ({"sharing": {"head": "lora"}}, r"sharing\.head = 'lora'. Choose one of"),
    ],
)
def test_what_is_refused(change, words, sets):
    plain = settings(sets)
    for name, table in change.items():
        plain[name] = table if name in ("branches", "model") else {**plain.get(name, {}), **table}
    with pytest.raises(ConfigError, match=words):
        read_settings(plain)


def test_missing_stores_and_changed_ones_are_named(calm, sets, tmp_path):
    with pytest.raises(DataError, match=r"\[branches\.gold\].*does not exist"):
        train(settings({**sets, "gold": tmp_path / "x.h5"}), directory=tmp_path, progress=False)
    more = settings(sets, branches={"gold": {"weight": 2.0}})
    with pytest.raises(ResumeError, match=r"branches\.gold\.weight"):
        train(more, directory=calm.directory, progress=False)
    assert train(settings(sets), directory=calm.directory, progress=False).errors == calm.errors


def test_steps_that_are_not_finite_name_their_branch(sets, tmp_path):
    sick = training.store(tmp_path / "sick.h5", 8, sick=tuple(range(8)))
    asked = settings({"alloy": sets["alloy"], "sick": sick}, 51, run={"max_skipped": 3})
    asked["branches"]["alloy"]["weight"] = 0.0
    asked["data"]["valid_fraction"] = 0.2
    with pytest.raises(DataError, match=r"not finite in .* steps in a row.*sick: .*Cu4, 4 atoms"):
        train(asked, directory=tmp_path / "run", progress=False)


def test_means_over_branches():
    nan = float("nan")
    errors = {"a": {"x": 1.0, "y": nan}, "b": {"x": 3.0, "y": 5.0}, "c": {"x": 9.0, "y": 9.0}}
    found = combined(errors, {"a": 0.75, "b": 0.25, "c": 0.0})
    assert found["x"] == 1.5
    assert found["y"] == 5.0
    assert found["c:x"] == 9.0
    assert (
        sum(probabilities(read_settings(settings({"a": Path("a"), "b": Path("b")}))).values()) == 1
    )


def test_all_branches_of_a_run_open_at_once(calm):
    assert tuple(load_branches(calm.directory / "last.safetensors")) == ("alloy", "gold")
