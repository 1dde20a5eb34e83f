"""Property models and embeddings of DeePMD-kit.  For the python of its own virtual environment.

    property_peer.py OUT FRAMES

OUT gets, for every head, HEAD.pt and HEAD.npz: DeePMD-kit's answers on the structures of
option_sets.py; `trained.pt` and `trained.npz`: the same after a short `dp --pt train` on FRAMES, a
DeePMD system with labels gap.npy; and, for the energy model `base`, base.pt, base.npz with its
embeddings, and embedding.hdf5, which `dp embed` wrote of FRAMES.  What is in an .npz is said in
peer.py; here the answers are `property`, `atom_property`, `descriptor`, `atomic_feature` and
`structural_feature`.  It needs nothing of dpa4sim.

    property_peer.py eval CHECKPOINT OUT         answers of any checkpoint on the structures
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from peer import inputs_for, randomise

import numpy as np  # isort: skip
import torch  # isort: skip
from deepmd.infer.deep_property import DeepProperty  # type: ignore[import-not-found]  # isort: skip
from deepmd.infer.deep_eval import DeepEval  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.model.model import get_model  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.train.wrapper import ModelWrapper  # type: ignore[import-not-found]  # isort: skip
from option_sets import find  # isort: skip

HEADS: dict[str, dict[str, Any]] = {
    "intensive": {"task_dim": 3, "intensive": True, "neuron": [8, 16, 16, 5]},
    "extensive": {"task_dim": 1, "neuron": [12, 0]},
    "one_bias": {
        "task_dim": 2,
        "distinguish_types": False,
        "activation_function": "gelu",
        "resnet_dt": False,
        "neuron": [16, 16],
    },
    "direct": {"task_dim": 2, "intensive": True, "activation_function": "silu", "neuron": []},
}
"""Skips of equal and of double width, with and without step scales; automatic width; no layer."""


def model_of(head: dict[str, Any]) -> dict[str, Any]:
    """DeePMD-kit's model section."""
    model = copy.deepcopy(find("base").model)
    fitting = {"type": "property", "property_name": "gap", "precision": "float64", "seed": 1}
    return model | {"fitting_net": fitting | head}


def save_checkpoint(options: dict[str, Any], path: Path) -> None:
    """A training checkpoint of a random model."""
    torch.manual_seed(0)
    model = get_model(options)
    randomise(model)
    torch.save({"model": ModelWrapper(model, model_params=options).state_dict()}, path)


def answers(checkpoint: Path, of_property: bool) -> dict[str, np.ndarray]:
    """Property and embeddings of each structure."""
    evaluator = DeepProperty(str(checkpoint)) if of_property else None
    embedder = DeepEval(str(checkpoint))
    found: dict[str, np.ndarray] = {}
    for name, given in inputs_for(find("base")).items():
        box = given["box"].reshape(1, 9) if given["box"].size else None
        place = given["coord"].reshape(1, -1), box, given["atype"].tolist()
        said = dict(given)
        if evaluator is not None:
            values, atomic = evaluator.eval(*place, atomic=True)
            said |= {"property": values[0], "atom_property": atomic[0]}
        names = ("descriptor", "atomic_feature", "structural_feature")
        features = embedder.eval_embedding(*place, dtype="fp64")
        said |= {key: value[0] for key, value in zip(names, features, strict=True)}
        found |= {f"{name}/{key}": value for key, value in said.items()}
    return found


def train(folder: Path, frames: Path) -> None:
    """Six steps of `dp --pt train`, whose checkpoint is brought here as trained.pt."""
    folder.mkdir()
    values = {
        "model": model_of(HEADS["intensive"]),
        "optimizer": {"type": "HybridMuon"},
        "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_steps": 3},
        "loss": {"type": "property", "metric": ["mae", "rmse"]},
        "training": {
            "training_data": {"systems": [str(frames)], "batch_size": 2},
            "numb_steps": 6,
            "save_freq": 6,
            "seed": 1,
        },
    }
    (folder / "input.json").write_text(json.dumps(values))
    run(["--pt", "train", "input.json", "--skip-neighbor-stat"], folder)
    (folder / "model.ckpt-6.pt").replace(folder.parent / "trained.pt")


def run(words: list[str], folder: Path) -> None:
    """One of DeePMD-kit's own commands."""
    dp = Path(sys.executable).with_name("dp")
    done = subprocess.run([dp, *words], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])


def build(out: Path, frames: Path) -> None:
    """Everything."""
    out.mkdir(parents=True, exist_ok=True)
    for name, head in HEADS.items():
        save_checkpoint(model_of(head), out / f"{name}.pt")
        np.savez(out / f"{name}.npz", **answers(out / f"{name}.pt", True))
    train(out / "training", frames)
    np.savez(out / "trained.npz", **answers(out / "trained.pt", True))
    save_checkpoint(find("base").model, out / "base.pt")
    np.savez(out / "base.npz", **answers(out / "base.pt", False))
    words = ["-m", "base.pt", "-s", str(frames), "-o", "embedding.hdf5", "--dtype", "fp64"]
    run(["--pt", "embed", *words], out)


def main(words: list[str]) -> None:
    """Dispatch."""
    if len(words) == 3 and words[0] == "eval":
        np.savez(words[2], **answers(Path(words[1]), True))
    elif len(words) == 2:
        build(Path(words[0]), Path(words[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
