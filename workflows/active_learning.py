"""Active learning: a committee explores, asks a teacher where it disagrees, learns, and repeats.

    python workflows/active_learning.py SETTINGS FRAMES START... [--teacher MODULE:NAME] [-o FOLDER]

SETTINGS is a TOML file of `dpa4sim train` without [data]; FRAMES are labelled structures to begin
with; START are structures from which short molecular dynamics sets out.  A round:

    train      the members, from different seeds; later ones go on from the round before
    test       errors of the committee on the frames that were set aside at the beginning
    explore    dynamics of the committee, each trajectory ending where the members disagree too much
    pick       of the visited frames the most uncertain, and of these such as are unlike each other
    label      by the teacher, any ASE calculator

FOLDER/learning.json and learning.png have the errors over the number of labelled frames.  Every
step leaves whole files only: the same command goes on after any interruption.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io import read, write
from committee import farthest, feature, labelled, spreads
from recipe import leave, open_frame, write_json

import dpa4sim
from dpa4sim.cli.table import fixed, table
from dpa4sim.data.read import read_frames
from dpa4sim.data.writer import write_store
from dpa4sim.ensemble import Ensemble
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.plots import DPI, INK, PALETTE
from dpa4sim.pool.checkpoint import whole

PICKS = ("uncertain", "random")

NEVER_BEYOND = 50.0
"""eV/Å; frames with larger forces by the teacher teach nothing about matter."""

WARMUP_SHARE = 20
"""Of the steps of a round after the first: one in so many warms up."""

SHORTLIST = 4
"""The farthest are chosen among so many times the number asked for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a campaign is asked to do.

    Args:
        settings: of `dpa4sim.train`, without data and finetune.
        members: in the committee.
        rounds: of training; the last one is only tested.
        picks: frames that the teacher labels in each round.
        choose: "uncertain", or "random" for what the first is to be compared with.
        test_fraction: of the first frames that are set aside.
        finetune_steps: of training in each round after the first.
        temperature: of the dynamics, K.
        steps: of the dynamics, of a femtosecond.
        max_force_spread: eV/Å; where a trajectory ends.
        seed: of everything random.
    """

    settings: dict[str, Any]
    members: int = 4
    rounds: int = 5
    picks: int = 20
    choose: str = "uncertain"
    test_fraction: float = 0.2
    finetune_steps: int = 1000
    temperature: float = 600.0
    steps: int = 1000
    max_force_spread: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("members", 2), ("rounds", 1), ("picks", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)}. Give {least} or more.")
        if self.choose not in PICKS:
            raise ConfigError(f"choose={self.choose!r}. Valid: {', '.join(PICKS)}.")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test_fraction={self.test_fraction}. Give a share, such as 0.2.")


@dataclass(frozen=True)
class Learned:
    """What a round knew.

    Args:
        labelled: frames that it was trained on.
        energy_mae: on the frames set aside, meV/atom.
        force_mae: there, meV/Å.
        force_spread: largest of a frame there, mean, meV/Å.
        visited: frames of the exploration; 0 for the last round, which does not explore.
        stopped: trajectories that ended because the members disagreed.
        worst_spread: largest force spread among the visited, meV/Å; NaN without.
    """

    labelled: int
    energy_mae: float
    force_mae: float
    force_spread: float
    visited: int
    stopped: int
    worst_spread: float


def learn(
    plan: Plan,
    frames: Sequence[Atoms],
    starts: Sequence[Atoms],
    teacher: Callable[[], Calculator],
    folder: Path,
) -> list[Learned]:
    """All rounds, or those that the folder does not have yet.

    Args:
        frames: with energy, forces and stress.
        starts: of the dynamics.
        teacher: makes a calculator.

    Raises:
        ConfigError: the folder was begun with another plan.
        DataError: too few frames.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _agree(folder / "plan.json", asdict(plan))
    test = _set_aside(plan, frames, folder)
    found: list[Learned] = []
    for number in range(plan.rounds):
        place = folder / f"round-{number:02}"
        place.mkdir(exist_ok=True)
        done = place / "learned.json"
        if not done.exists():
            committee = train_members(plan, folder, number)
            explores = number + 1 < plan.rounds
            visited, stopped = explore(plan, committee, starts, place) if explores else ([], 0)
            if explores:
                _label(plan, committee, visited, teacher, folder, number)
            learned = examine(committee, test, folder, number, visited, stopped)
            with whole(done) as partial:
                write_json(partial, asdict(learned))
        values = json.loads(done.read_text())
        found.append(Learned(**{k: math.nan if v is None else v for k, v in values.items()}))
    return found


def train_members(plan: Plan, folder: Path, number: int) -> Ensemble:
    """The committee of a round; the members differ by their seeds, and go on where they stood."""
    place = folder / f"round-{number:02}"
    path = place / "committee.safetensors"
    if path.exists():
        committee: Ensemble = dpa4sim.load(path)
        return committee
    cutoff = float(plan.settings.get("model", {}).get("cutoff", 6.0))
    store = place / "train.h5"
    if not store.exists():
        files = [folder / "first.extxyz", *_labelled(folder, number)]
        write_store(store, read_frames(files), cutoff=cutoff, progress=False)
    members = []
    for member in range(plan.members):
        asked = {name: dict(values) for name, values in plan.settings.items()}
        asked["data"] = {**asked.get("data", {}), "train": str(store)}
        asked["run"] = {**asked["run"], "seed": plan.seed + member}
        if number:
            before = folder / f"round-{number - 1:02}" / f"member-{member}" / "best.safetensors"
            asked.pop("model", None)
            asked["run"]["steps"] = plan.finetune_steps
            asked["finetune"] = {"model": str(before), "refit_shifts": False}
            asked["schedule"] = {
                **asked.get("schedule", {}),
                "warmup_steps": plan.finetune_steps // WARMUP_SHARE,
            }
        result = dpa4sim.train(asked, directory=place / f"member-{member}", progress=False)
        members.append(result.potential)
    committee = Ensemble(members)
    committee.save(path)
    return committee


def explore(
    plan: Plan, committee: Ensemble, starts: Sequence[Atoms], place: Path
) -> tuple[list[Atoms], int]:
    """Frames that dynamics visited up to where the members disagree, and how often they did."""
    output = place / "explore.h5"
    runs = dpa4sim.md(
        committee,
        list(starts),
        ensemble="nvt",
        temperature=plan.temperature,
        steps=plan.steps,
        seed=plan.seed + int(place.name.removeprefix("round-")),
        frame_every=max(1, plan.steps // 20),
        sample_every=max(1, plan.steps // 20),
        max_force_spread=plan.max_force_spread,
        output=output,
        resume=output.exists(),
        progress=False,
    )
    with dpa4sim.read_trajectory(output) as trajectory:
        frames = [atoms for system in range(len(runs)) for atoms in trajectory.frames(system)]
    return frames, sum(run.status == dpa4sim.Status.UNCERTAIN for run in runs)


def pick(plan: Plan, committee: Ensemble, frames: Sequence[Atoms], number: int) -> list[int]:
    """Frames for the teacher: the most uncertain, and of these such as are unlike each other."""
    count = min(plan.picks, len(frames))
    if plan.choose == "random":
        noise = np.random.default_rng([plan.seed, number])
        return sorted(noise.choice(len(frames), count, replace=False).tolist())
    order = np.argsort(-spreads(committee, frames), kind="stable")[: SHORTLIST * count]
    features = np.stack([feature(committee, frames[place]) for place in order])
    return [int(order[place]) for place in farthest(features, count)]


def _label(
    plan: Plan,
    committee: Ensemble,
    visited: Sequence[Atoms],
    teacher: Callable[[], Calculator],
    folder: Path,
    number: int,
) -> None:
    """Labels of the picked frames, in the folder of the next round."""
    path = folder / f"labelled-{number:02}.extxyz"
    if path.exists():
        return
    found = [
        labelled(visited[place], teacher()) for place in pick(plan, committee, visited, number)
    ]
    usable = [atoms for atoms in found if np.abs(atoms.get_forces()).max() < NEVER_BEYOND]
    with whole(path) as partial:
        write(partial, usable, format="extxyz")


def examine(
    committee: Ensemble,
    test: Sequence[Atoms],
    folder: Path,
    number: int,
    visited: Sequence[Atoms],
    stopped: int,
) -> Learned:
    """Errors on the frames that were set aside, and what the exploration met."""
    said = committee.evaluate(list(test))
    counts = np.array([len(atoms) for atoms in test])
    energies = np.array([atoms.get_potential_energy() for atoms in test])
    forces = np.concatenate([atoms.get_forces() for atoms in test])
    files = [folder / "first.extxyz", *_labelled(folder, number)]
    return Learned(
        labelled=sum(len(_all(file)) for file in files),
        energy_mae=1e3 * float(np.abs((said.energy.numpy() - energies) / counts).mean()),
        force_mae=1e3 * float(np.abs(said.forces.numpy() - forces).mean()),
        force_spread=1e3 * float(spreads(committee, test).mean()),
        visited=len(visited),
        stopped=stopped,
        worst_spread=1e3 * float(spreads(committee, visited).max()) if visited else math.nan,
    )


def _labelled(folder: Path, number: int) -> list[Path]:
    """What was labelled before a round."""
    return [folder / f"labelled-{before:02}.extxyz" for before in range(number)]


def _all(file: Path) -> list[Atoms]:
    frames: list[Atoms] = read(file, ":")
    return frames


def _set_aside(plan: Plan, frames: Sequence[Atoms], folder: Path) -> list[Atoms]:
    """The test frames; both parts are kept, so that a later call sees the same."""
    paths = folder / "first.extxyz", folder / "test.extxyz"
    if not all(path.exists() for path in paths):
        count = round(plan.test_fraction * len(frames))
        if not 0 < count < len(frames):
            raise DataError(
                f"{len(frames)} frames leave none to train or to test on. Give more frames, or "
                "another test_fraction."
            )
        order = np.random.default_rng(plan.seed).permutation(len(frames))
        for path, rows in zip(paths, (order[count:], order[:count]), strict=True):
            with whole(path) as partial:
                write(partial, [frames[row] for row in rows], format="extxyz")
    return _all(paths[1])


def _agree(path: Path, plan: dict[str, Any]) -> None:
    """The plan of a folder stays what it was, but for more rounds."""
    plan = json.loads(json.dumps(plan))
    if path.exists():
        before = json.loads(path.read_text())
        for name in sorted((plan.keys() | before.keys()) - {"rounds"}):
            if plan.get(name) != before.get(name):
                raise ConfigError(
                    f"{path.parent} was begun with {name} = {before.get(name)!r}, and now it is "
                    f"{plan.get(name)!r}. Give the same, or another folder."
                )
    with whole(path) as partial:
        write_json(partial, plan)


def report(found: Iterable[Learned]) -> str:
    """One row per round."""
    headers = (
        "round",
        "frames",
        "E (meV/atom)",
        "F (meV/Å)",
        "spread (meV/Å)",
        "visited",
        "stopped",
    )
    rows = [
        [
            str(number),
            str(each.labelled),
            *(fixed(value, 1) for value in (each.energy_mae, each.force_mae, each.force_spread)),
            str(each.visited),
            str(each.stopped),
        ]
        for number, each in enumerate(found)
    ]
    return table(headers, rows)


def draw(curves: dict[str, Sequence[Learned]], path: Path) -> None:
    """Force errors over the number of labelled frames, a line for each campaign."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for (name, found), colour in zip(curves.items(), PALETTE, strict=False):
        frames = [each.labelled for each in found]
        axes.plot(frames, [e.force_mae for e in found], "o-", color=colour, label=f"{name}: error")
        spread = [each.force_spread for each in found]
        axes.plot(frames, spread, "o--", color=colour, alpha=0.5, label=f"{name}: spread")
    axes.set_xlabel("labelled frames", color=INK)
    axes.set_ylabel("forces on test frames (meV/Å)", color=INK)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, labelcolor=INK)
    open_frame(axes)
    figure.savefig(path)


def find_teacher(name: str) -> Callable[[], Calculator]:
    """The calculator class, or function that makes one, of MODULE:NAME.

    Raises:
        ConfigError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[], Calculator] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"There is no teacher '{name}' ({error}). Give MODULE:NAME of an ASE calculator, such "
            "as ase.calculators.emt:EMT."
        ) from error
    return found


def main(words: Sequence[str] | None = None) -> int:
    """All rounds, the table and the curve."""
    args = _arguments(words)
    try:
        settings = tomllib.loads(args.settings.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{args.settings} cannot be read as TOML: {error}.") from error
    names = ("members", "rounds", "picks", "choose", "test_fraction", "finetune_steps")
    names += ("temperature", "steps", "max_force_spread", "seed")  # type: ignore[assignment]
    plan = Plan(settings=settings, **{name: getattr(args, name) for name in names})
    starts = [atoms for file in args.starts for atoms in _all(file)]
    found = learn(plan, _all(args.frames), starts, find_teacher(args.teacher), args.out)
    print(report(found))
    write_json(args.out / "learning.json", [asdict(each) for each in found])
    draw({plan.choose: found}, args.out / "learning.png")
    print(f"{args.out / 'learning'}.json and .png are written.")
    return 0


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", metavar="SETTINGS", type=Path, help="TOML of dpa4sim train")
    parser.add_argument("frames", metavar="FRAMES", type=Path, help="labelled, to begin with")
    parser.add_argument("starts", metavar="START", type=Path, nargs="+", help="of the dynamics")
    parser.add_argument("--teacher", default="ase.calculators.emt:EMT", help="MODULE:CALCULATOR")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/active_learning"))
    parser.add_argument("--choose", default="uncertain", choices=PICKS, help="[uncertain]")
    for name, kind, default, text in (
        ("members", int, 4, "of the committee"),
        ("rounds", int, 5, "of training"),
        ("picks", int, 20, "frames labelled in each round"),
        ("test-fraction", float, 0.2, "of the first frames"),
        ("finetune-steps", int, 1000, "of training in later rounds"),
        ("temperature", float, 600.0, "of the dynamics, K"),
        ("steps", int, 1000, "of the dynamics, fs"),
        ("max-force-spread", float, 0.5, "where a trajectory ends, eV/Å"),
        ("seed", int, 0, "of everything random"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} [{default}]")
    return parser.parse_args(words)


if __name__ == "__main__":
    leave(main)
