"""Everything once on the processor and once on the second device; prints how far they are apart.

    python second_device_run.py WORK

JSON by the name of the case: {"apart": largest difference, "error": traceback or null}.
"""

from __future__ import annotations

import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import torch
from models import BASE, FILE_SETS, crystal, molecule, random_model
from recording import Runner, networked
from second_device import NAME, second_device
from torch import Tensor
from training import settings, store

import dpa4sim
from dpa4sim.batch import Batch
from dpa4sim.config import PropertyConfig
from dpa4sim.direct import DirectModel
from dpa4sim.dispersion import d3
from dpa4sim.ensemble import Ensemble
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel
from dpa4sim.train.run import train

Case = Callable[[str], Any]

MAX_EDGES = 3000
STEPS = 12

RELAXATIONS: dict[str, dict[str, Any]] = {
    "lbfgs": {},
    "lbfgs, fixed cells": {"cell": False},
    "hydrostatic": {"hydrostatic": True},
    "constant volume": {"constant_volume": True},
    "symmetry": {"fix_symmetry": True},
    "fixed atoms, mask, pressure": {
        "fixed_atoms": [[0], [], [1]],
        "mask": [True, True, True, False, False, False],
        "pressure_gpa": [0.0, 1.0, 2.0],
    },
    "fire": {"optimizer": "fire"},
    "fire, unit filter": {"optimizer": "fire", "cell_filter": "unit"},
}

DYNAMICS: dict[str, dict[str, Any]] = {
    "nve": {"ensemble": "nve"},
    "langevin": {},
    "bussi": {"thermostat": "bussi"},
    "npt isotropic": {"ensemble": "npt"},
    "npt anisotropic": {"ensemble": "npt", "coupling": "anisotropic"},
    "npt triclinic": {"ensemble": "npt", "coupling": "triclinic"},
}

RECORDED: dict[str, dict[str, Any]] = {
    "lbfgs": {"optimizer": "lbfgs"},
    "fire": {"optimizer": "fire"},
    "langevin": {},
    "bussi": {"thermostat": "bussi"},
}

TRAININGS: dict[str, dict[str, Any]] = {
    "muon": {"run": {"dtype": "float64"}},
    "adamw": {"run": {"dtype": "float64"}, "optimizer": {"name": "adamw"}},
}


def cells() -> list[Any]:
    """Rattled crystals of one to two atoms."""
    found = [ase.build.bulk("Si"), ase.build.bulk("Cu"), ase.build.bulk("NaCl", "rocksalt", 5.64)]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.1, seed=seed)
    return found


def seed(device: str, **options: Any) -> Any:
    """The model that comes along, in double precision where nothing else is said."""
    return dpa4sim.load("seed", **{"device": device, "dtype": "float64", **options})


def relaxed(asked: dict[str, Any], work: Path) -> Case:
    """Geometries, energies and statuses after some steps, with a checkpoint after each."""

    def case(device: str) -> Any:
        found = dpa4sim.relax(
            seed(device),
            cells(),
            max_steps=STEPS,
            directory=work / f"{device}-{hash(str(asked))}",
            checkpoint_every_s=0.0,
            progress=False,
            max_edges=MAX_EDGES,
            **asked,
        )
        return [found.batches, found.energy, found.steps, [int(s) for s in found.status]]

    return case


def moved(asked: dict[str, Any], work: Path) -> Case:
    """Geometries, velocities and means after some steps, with a trajectory file."""

    def case(device: str) -> Any:
        output = work / f"{device}-{'-'.join(map(str, asked.values()))}.h5"
        runs = dpa4sim.md(
            seed(device),
            cells(),
            steps=STEPS,
            sample_every=4,
            frame_every=4,
            rdf_max=4.0,
            output=output,
            checkpoint_every_s=0.0,
            progress=False,
            max_edges=MAX_EDGES,
            **asked,
        )
        return [[run.batch, run.velocities, run.means, run.rdf, int(run.status)] for run in runs]

    return case


def recorded(asked: dict[str, Any]) -> Case:
    """Recorded steps of the device, by a recorder that runs them again, beside plain ones."""

    def case(device: str) -> Any:
        recorder, structures = Runner(), [crystal(), molecule()]
        model = networked(recorder, device=device)
        if device == "cpu":
            model.step_graphs = None
        plain = {"progress": False, "max_edges": MAX_EDGES, **asked}
        if "optimizer" in asked:
            found = dpa4sim.relax(model, structures, cell=[True, False], max_steps=STEPS, **plain)
            answer = [found.batches, found.energy, found.steps]
        else:
            runs = dpa4sim.md(model, structures, steps=STEPS, **plain)
            answer = [[run.batch, run.velocities] for run in runs]
        if device != "cpu" and recorder.replayed < STEPS:
            raise AssertionError(f"only {recorder.replayed} steps were recorded")
        return answer

    return case


def trained(asked: dict[str, Any], work: Path) -> Case:
    """Errors and weights after some steps."""

    def case(device: str) -> Any:
        source = work / "frames.h5"
        if not source.exists():
            store(source, 16)
        tables = {**asked, "run": {**asked.get("run", {}), "device": device, "compile": False}}
        plain = settings(source, 6, **tables)
        directory = work / f"{device}-{asked.get('optimizer', {}).get('name', 'muon')}"
        done = train(plain, directory=directory, progress=False)
        return [done.errors, [p.detach() for p in done.potential.model.parameters()]]

    return case


def cases(work: Path) -> dict[str, Case]:
    """Each answers the same on every device."""
    structures = [molecule(), crystal()]
    crystals = cells()
    property_head = PropertyConfig(name="gap", task_dim=2, hidden=(8, 16))

    def network(config: Any) -> Case:
        return lambda device: Potential(
            random_model(config), card={}, device=device, dtype="float64"
        ).evaluate(structures)

    def direct(device: str) -> Any:
        model = random_model(replace(BASE, force_head="direct"))
        return DirectModel(model, card={}, device=device, dtype="float64").evaluate(structures)

    def of_property(device: str) -> Any:
        model = random_model(replace(BASE, property_head=property_head))
        return PropertyModel(model, card={}, device=device, dtype="float64").evaluate(structures)

    found: dict[str, Case] = {f"network {name}": network(FILE_SETS[name]) for name in FILE_SETS}
    found |= {
        "direct": direct,
        "property": of_property,
        "float32": lambda device: seed(device, dtype="float32").evaluate(crystals),
        "fast": lambda device: seed(device, dtype="float32", accuracy="fast").evaluate(crystals),
        "descriptors": lambda device: seed(device).embed(crystals),
        "ensemble": lambda device: Ensemble([seed(device), seed(device)]).evaluate(crystals),
        "sum": lambda device: (seed(device) + d3("pbe", device=device)).evaluate(crystals),
    }
    found |= {f"relax {name}": relaxed(asked, work) for name, asked in RELAXATIONS.items()}
    found |= {f"md {name}": moved(asked, work) for name, asked in DYNAMICS.items()}
    found |= {f"recorded {name}": recorded(asked) for name, asked in RECORDED.items()}
    found |= {f"train {name}": trained(asked, work) for name, asked in TRAININGS.items()}
    return found


def numbers(answer: Any) -> Iterable[np.ndarray]:
    """All numbers of an answer, in order."""
    if isinstance(answer, Tensor):
        yield answer.detach().cpu().double().numpy()
    elif isinstance(answer, Batch):
        for value in (answer.positions, answer.cell, answer.atomic_numbers):
            yield from numbers(value)
    elif is_dataclass(answer):
        for field in fields(answer):
            yield from numbers(getattr(answer, field.name))
    elif isinstance(answer, dict):
        for name in sorted(answer):
            yield from numbers(answer[name])
    elif isinstance(answer, list | tuple):
        for each in answer:
            yield from numbers(each)
    elif isinstance(answer, int | float | np.ndarray | np.number):
        yield np.asarray(answer, dtype=float)


def apart(one: Any, other: Any) -> float:
    """The largest difference of two answers, relative where numbers are larger than 1.

    Infinite where they are of different shapes or are not numbers in different places.
    """
    pairs = list(zip(list(numbers(one)), list(numbers(other)), strict=True))
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    if any((np.isnan(a) != np.isnan(b)).any() for a, b in pairs):
        return float("inf")
    scaled = (np.abs(a - b) / np.maximum(1, np.abs(a)) for a, b in pairs if a.size)
    return max(float(np.nan_to_num(each).max()) for each in scaled)


def measure(case: Case) -> dict[str, Any]:
    """Both devices, compared."""
    try:
        here = case("cpu")
        with second_device():
            there = case(NAME)
        return {"apart": apart(here, there), "error": None}
    except Exception:
        return {"apart": None, "error": traceback.format_exc(limit=-8)}


def refused() -> dict[str, str | None]:
    """What is said where two devices meet; None where they may."""
    with second_device():
        there, here = torch.ones(3, device=NAME, requires_grad=True), torch.ones(3)
        tries: dict[str, Callable[[], Any]] = {
            "a sum": lambda: there + here,
            "a sum the other way": lambda: here + there,
            "writing": lambda: here.add_(there.detach()),
            "an index": lambda: here[torch.tensor([0], device=NAME)],
            "values for an index": lambda: there.detach().index_put_((torch.tensor([0]),), here),
            "sums by index": lambda: torch.zeros(3, device=NAME).index_add_(
                0, torch.tensor([0, 1, 2]), there.detach()
            ),
            "numpy": lambda: there.detach().numpy(),
        }
        found: dict[str, str | None] = {}
        for what, attempt in tries.items():
            try:
                attempt()
                found[what] = None
            except (RuntimeError, TypeError) as error:
                found[what] = str(error)
    return found


def main(work: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {name: measure(case) for name, case in cases(work).items()}
    print(json.dumps(found | {"refused": refused()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
