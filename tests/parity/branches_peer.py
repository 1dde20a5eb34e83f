"""Multi-task checkpoints of DeePMD-kit.  For the python of its own virtual environment.

    branches_peer.py OUT FRAMES

OUT gets, for every way to share, KIND.pt, a file of the branches of `BRANCHES`, and for each branch
KIND.BRANCH.npz: DeePMD-kit's answers on the structures of option_sets.py.  `trained.pt` and its
answers come from `dp --pt train` on FRAMES, a DeePMD system with energies and forces, for all
branches.  What is in an .npz is said in peer.py.  It needs nothing of dpa4sim.

    branches_peer.py eval CHECKPOINT OUT [BRANCH]     answers of any checkpoint on the structures
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

from peer import evaluate, inputs_for, randomise
from property_peer import run

import numpy as np  # isort: skip
import torch  # isort: skip
from deepmd.pt.model.model import get_model  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.train.wrapper import ModelWrapper  # type: ignore[import-not-found]  # isort: skip
from option_sets import find  # isort: skip

BRANCHES = ("water", "alloy", "crystals")
"""Not in alphabetical order, which is the order of DeePMD-kit's cases."""
KINDS: dict[str, dict[str, Any]] = {
    "own": {},
    "film": {"dim_case_embd": 3, "case_film_embd": True, "neuron": [12, 0]},
    "film_direct": {"dim_case_embd": 3, "case_film_embd": True, "neuron": []},
    "concat": {"dim_case_embd": 3, "neuron": [0, 9]},
}
"""Automatic and given widths, several layers, none."""


def options_of(changes: dict[str, Any]) -> dict[str, Any]:
    """DeePMD-kit's model section of one branch."""
    model = copy.deepcopy(find("base").model)
    model["fitting_net"] |= changes
    return model


def save_checkpoint(kind: str, path: Path) -> None:
    """A file of several random branches; with a case embedding they differ in nothing else."""
    options = options_of(KINDS[kind])
    models = {}
    for place, name in enumerate(sorted(BRANCHES)):
        torch.manual_seed(0)
        models[name] = get_model(options)
        randomise(models[name])
        if "dim_case_embd" in KINDS[kind]:
            models[name].set_case_embd(place)
        else:
            with torch.no_grad():
                models[name].atomic_model.fitting_net.bias_atom_e.add_(place)
                for weight in models[name].atomic_model.fitting_net.parameters():
                    weight.mul_(1 + 0.1 * place)
    models = {name: models[name] for name in BRANCHES}
    params = {"model_dict": dict.fromkeys(models, options)}
    torch.save({"model": ModelWrapper(models, model_params=params).state_dict()}, path)


def train(folder: Path, frames: Path) -> None:
    """Four steps of `dp --pt train` with a shared trunk and a shared, modulated head."""
    folder.mkdir()
    options = options_of(KINDS["film"])
    shared = {
        "elements": options["type_map"],
        "trunk": options["descriptor"],
        "head": options["fitting_net"],
    }
    use = {"type": "dpa4", "type_map": "elements", "descriptor": "trunk", "fitting_net": "head"}
    rate = {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_steps": 2}
    loss = {"type": "ener", "start_pref_e": 1, "start_pref_f": 10, "start_pref_v": 0}
    data = {"training_data": {"systems": [str(frames)], "batch_size": 1}}
    values = {
        "model": {"shared_dict": shared, "model_dict": dict.fromkeys(BRANCHES, use)},
        "optimizer": {"type": "HybridMuon"},
        "learning_rate": rate,
        "loss_dict": {name: loss | {"start_pref_e": k} for k, name in enumerate(BRANCHES, 1)},
        "training": {
            "model_prob": dict.fromkeys(BRANCHES, 1.0),
            "data_dict": dict.fromkeys(BRANCHES, data),
            "numb_steps": 4,
            "save_freq": 4,
            "seed": 1,
        },
    }
    (folder / "input.json").write_text(json.dumps(values))
    run(["--pt", "train", "input.json", "--skip-neighbor-stat"], folder)
    (folder / "model.ckpt-4.pt").replace(folder.parent / "trained.pt")


def answer(checkpoint: Path, out: Path, branch: str | None) -> None:
    """Energies, forces and virials of one branch."""
    np.savez(out, **evaluate(checkpoint, inputs_for(find("base")), branch))


def build(out: Path, frames: Path) -> None:
    """Everything."""
    out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        save_checkpoint(kind, out / f"{kind}.pt")
    train(out / "training", frames)
    for kind in (*KINDS, "trained"):
        for branch in BRANCHES:
            answer(out / f"{kind}.pt", out / f"{kind}.{branch}.npz", branch)


def main(words: list[str]) -> None:
    """Dispatch."""
    if words[:1] == ["eval"] and len(words) in (3, 4):
        answer(Path(words[1]), Path(words[2]), words[3] if len(words) == 4 else None)
    elif len(words) == 2:
        build(Path(words[0]), Path(words[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
