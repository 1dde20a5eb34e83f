"""HybridMuon, schedules and weight average against DeePMD-kit 3.2.0, number for number."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dpa4sim.adapters.deepmd import read_deepmd, tensor_names
from dpa4sim.model import DPA4
from dpa4sim.train.average import WeightAverage
from dpa4sim.train.muon import HybridMuon, Kind, parameter_groups
from dpa4sim.train.schedule import WarmupCosine, WarmupStableDecay

from .conftest import HERE
from .optimizer_cases import (
    CASES,
    DECAY,
    MODEL_SETS,
    MODEL_STEPS,
    RATE,
    SCHEDULES,
    STEPS,
    gradient,
)

pytestmark = pytest.mark.peer

DOUBLE_TOLERANCE = 1e-10
"""Weights and changes of order 1, both programs in float64; 1e-14 is what we see, 1e-11 where the
gradient is near the floor of its norm."""
HALF_TOLERANCE = 0.01
"""Of a step's length, in half precision; the reference scales in bfloat16 too: one bit is 0.004."""


@pytest.fixture(scope="module")
def answers(deepmd_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimizer")
    done = subprocess.run(
        [str(deepmd_python), str(HERE / "optimizer_peer.py"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def kind_of_case(name: str) -> Kind:
    """What DeePMD-kit makes of the names of the loose tensors."""
    if name.startswith("adamw_"):
        return "adamw"
    return "adam" if name in ("vector", "column", "adam_table") else "muon"


def loose_tensors(dtype: torch.dtype) -> tuple[dict[str, torch.nn.Parameter], HybridMuon]:
    starts = {name: torch.from_numpy(gradient(name, CASES[name], -1)) for name in CASES}
    named = {name: torch.nn.Parameter(start.to(dtype)) for name, start in starts.items()}
    groups = [
        {"params": [p for name, p in named.items() if kind_of_case(name) == kind], "kind": kind}
        for kind in ("muon", "adam", "adamw")
    ]
    precision = "half" if dtype == torch.float32 else "full"
    return named, HybridMuon(groups, lr=RATE, weight_decay=DECAY, precision=precision)


def advance(named: dict[str, torch.nn.Parameter], optimizer: HybridMuon, step: int) -> None:
    for name, parameter in named.items():
        drawn = gradient(name, tuple(parameter.shape), step)
        parameter.grad = torch.from_numpy(drawn).to(parameter.dtype)
    optimizer.step()


def test_steps_agree_in_double_precision(answers: Path) -> None:
    named, optimizer = loose_tensors(torch.float64)
    expected = np.load(answers / "matrices.npz")
    for step in range(STEPS):
        advance(named, optimizer, step)
        for name, parameter in named.items():
            got = parameter.detach().numpy()
            off = np.abs(got - expected[f"double/{step}/{name}"]).max()
            assert off < DOUBLE_TOLERANCE, f"{name}, step {step}: {off:.1e}"


def test_a_step_agrees_in_half_precision(answers: Path) -> None:
    named, optimizer = loose_tensors(torch.float32)
    starts = {name: parameter.detach().clone() for name, parameter in named.items()}
    advance(named, optimizer, 0)
    expected = np.load(answers / "matrices.npz")
    for name, parameter in named.items():
        reference = torch.from_numpy(expected[f"half/0/{name}"])
        change, off = reference - starts[name], reference - parameter.detach()
        assert off.norm() < HALF_TOLERANCE * change.norm(), name


@pytest.mark.parametrize("name", MODEL_SETS)
def test_every_tensor_of_a_network_takes_the_reference_route(name: str, answers: Path) -> None:
    """The route of each tensor, and the weights after two steps."""
    config, state = read_deepmd(answers / f"{name}.pt")
    model = DPA4(config, dtype=torch.float64)
    model.load_state_dict(state)
    theirs = {ours: f"atomic_model.{name}" for ours, name in tensor_names(config)}
    expected = np.load(answers / f"{name}.npz")
    groups = parameter_groups(model, lr=RATE, weight_decay=DECAY)
    routes = {ours: group["kind"] for group in groups for ours, _ in group["params"]}
    assert routes == {ours: str(expected[f"route/{key}"]) for ours, key in theirs.items()}
    optimizer = HybridMuon(groups)
    named = {theirs[ours]: parameter for ours, parameter in model.named_parameters()}
    for step in range(MODEL_STEPS):
        advance(named, optimizer, step)
    for key, parameter in named.items():
        off = np.abs(parameter.detach().numpy() - expected[f"after/{key}"]).max()
        assert off < DOUBLE_TOLERANCE, f"{key}: {off:.1e}"


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_agree(name: str, answers: Path) -> None:
    kind, options = SCHEDULES[name]
    given = {
        "total_steps": options["num_steps"],
        "warmup_steps": options.get("warmup_steps", 0),
        "start_factor": options.get("warmup_start_factor", 0.0),
        "stop_factor": options["stop_lr"] / RATE,
    }
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    if kind == "LearningRateCosine":
        schedule: WarmupStableDecay = WarmupCosine(optimizer, **given)
    else:
        given["decay_fraction"] = options["decay_phase_ratio"]
        schedule = WarmupStableDecay(optimizer, decay=options["decay_type"], **given)
    expected = np.load(answers / "schedules.npz")[name]
    got = []
    for _ in expected:
        got.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_average_without_ramp_agrees(answers: Path) -> None:
    model = torch.nn.Linear(3, 2)
    average = None
    for step in range(6):
        for name, parameter in model.named_parameters():
            drawn = gradient(name, tuple(parameter.shape), step)
            parameter.data.copy_(torch.from_numpy(drawn))
        if average is None:
            average = WeightAverage(model, 0.9, ramp=False)
        else:
            average.update(model)
    assert average is not None
    expected = np.load(answers / "average.npz")
    for name, value in average.weights.items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-6)
