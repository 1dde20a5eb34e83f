"""Run DeePMD-kit's optimiser, schedules and weight average.  For the python of its environment.

    optimizer_peer.py FOLDER

Writes matrices.npz (loose tensors, several steps, in double and half precision), SET.pt and SET.npz
(every tensor of a network, its route, two steps), schedules.npz and average.npz; each with the
inputs beside the answers.  It needs nothing of dpa4sim.
"""

from __future__ import annotations

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the same arithmetic without minutes of compiling

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import numpy as np
import torch
from deepmd.dpmodel.utils import learning_rate  # type: ignore[import-not-found]
from deepmd.pt.model.model import get_model  # type: ignore[import-not-found]
from deepmd.pt.optimizer import hybrid_muon  # type: ignore[import-not-found]
from deepmd.pt_expt.train.ema import ModelEMA  # type: ignore[import-not-found]
from optimizer_cases import (
    CASES,
    DECAY,
    MODEL_SETS,
    MODEL_STEPS,
    RATE,
    SCHEDULES,
    STEPS,
    gradient,
)
from option_sets import find
from peer import model_args, save_checkpoint


class DoublePrecision:
    """`torch` for one module, with float64 wherever it asks for another precision."""

    def __getattr__(self, name: str) -> Any:
        """An attribute of torch."""
        lower = name in ("bfloat16", "float16", "half", "float32")
        return getattr(torch, "float64" if lower else name)


@contextmanager
def double_precision() -> Iterator[None]:
    """Let the optimiser do everything in float64, so that only mistakes are left to differ."""
    hybrid_muon.torch, single = DoublePrecision(), torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        hybrid_muon.torch = torch
        torch.Tensor.float = single  # type: ignore[method-assign]


def optimiser(named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
    """The reference, with its defaults but for the rate and a decay large enough to be seen."""
    parameters = [parameter for _, parameter in named]
    return hybrid_muon.HybridMuonOptimizer(
        parameters, lr=RATE, weight_decay=DECAY, named_parameters=named
    )


def advance(
    named: list[tuple[str, torch.nn.Parameter]], chosen: torch.optim.Optimizer, step: int
) -> None:
    """One step with the gradients that both programs draw."""
    for name, parameter in named:
        drawn = gradient(name, tuple(parameter.shape), step)
        parameter.grad = torch.from_numpy(drawn).to(parameter.dtype)
    chosen.step()


def matrices(folder: Path) -> None:
    """Loose tensors of every shape class: all steps in float64, one step as it comes."""
    found = {}

    def tensors(dtype: torch.dtype) -> list[tuple[str, torch.nn.Parameter]]:
        starts = {name: torch.from_numpy(gradient(name, CASES[name], -1)) for name in CASES}
        return [(name, torch.nn.Parameter(start.to(dtype))) for name, start in starts.items()]

    named = tensors(torch.float64)
    chosen = optimiser(named)
    with double_precision():
        for step in range(STEPS):
            advance(named, chosen, step)
            found |= {f"double/{step}/{name}": p.detach().numpy().copy() for name, p in named}
    named = tensors(torch.float32)
    advance(named, optimiser(named), 0)
    found |= {f"half/0/{name}": p.detach().numpy() for name, p in named}
    np.savez(folder / "matrices.npz", **found)


def networks(folder: Path) -> None:
    """Route of every tensor of a network, by its state and by what decays under no gradient."""
    for name in MODEL_SETS:
        chosen = find(name)
        save_checkpoint(chosen, folder / f"{name}.pt")
        model = get_model(model_args().normalize_value(chosen.model))
        stored = torch.load(folder / f"{name}.pt", weights_only=True)["model"]
        state = {key.removeprefix("model.Default."): value for key, value in stored.items()}
        model.load_state_dict({key: value for key, value in state.items() if key[0] != "_"})
        named = list(model.named_parameters())
        found: dict[str, Any] = {}
        for _, parameter in named:
            parameter.grad = torch.zeros_like(parameter)
        before = {key: parameter.detach().clone() for key, parameter in named}
        first = optimiser(named)
        first.step()
        for key, parameter in named:
            decayed = not torch.equal(before[key], parameter)
            muon = "momentum_buffer" in first.state[parameter]
            found[f"route/{key}"] = "muon" if muon else "adamw" if decayed else "adam"
            parameter.data.copy_(before[key])
        second = optimiser(named)
        with double_precision():
            for step in range(MODEL_STEPS):
                advance(named, second, step)
        found |= {f"after/{key}": p.detach().numpy() for key, p in named}
        np.savez(folder / f"{name}.npz", **found)


def schedules(folder: Path) -> None:
    """Rates at every step and some beyond."""
    found = {}
    for name, (kind, options) in SCHEDULES.items():
        made = getattr(learning_rate, kind)(start_lr=RATE, **options)
        steps = range(options["num_steps"] + 5)
        found[name] = np.array([float(made.value(step)) for step in steps])
    np.savez(folder / "schedules.npz", **found)


def average(folder: Path) -> None:
    """The mean of three moving weights."""
    model = torch.nn.Linear(3, 2)
    ema, found = None, {}
    for step in range(6):
        for name, parameter in model.named_parameters():
            drawn = gradient(name, tuple(parameter.shape), step)
            parameter.data.copy_(torch.from_numpy(drawn))
        if ema is None:
            ema = ModelEMA(model, 0.9)
        else:
            ema.update(model)
    assert ema is not None
    for name, value in ema.state_dict()["model"].items():
        found[name] = value.numpy()
    np.savez(folder / "average.npz", **found)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for work in (matrices, networks, schedules, average):
        work(out)
