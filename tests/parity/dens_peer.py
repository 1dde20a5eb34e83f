"""Direct-force ("dens") models of DeePMD-kit.  For the python of its own virtual environment.

    dens_peer.py OUT FRAMES

OUT gets, for every model, MODEL.pt and MODEL.npz: DeePMD-kit's answers on the structures of
option_sets.py; `trained.pt` and `trained.npz`: the same after a short `dp --pt train` on FRAMES, a
DeePMD system with energies and forces; and uniform.pt and loss.npz, what its loss says of that
model and two frames for noise that is drawn there and kept.  What is in an .npz is said in peer.py;
here the answers are `energy`, `force`, and, of a structure some of whose atoms are said to be
displaced (`force_input`, `noise_mask`), `noisy_energy`, `noisy_force` and `noise`.

    dens_peer.py eval CHECKPOINT OUT ...     answers of any checkpoints on the structures

It needs nothing of dpa4sim.
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
from deepmd.infer import DeepPot  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.loss import DeNSLoss  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.model.model import get_model  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.train.wrapper import ModelWrapper  # type: ignore[import-not-found]  # isort: skip
from option_sets import find  # isort: skip

MODELS: dict[str, dict[str, Any]] = {
    "base": {},
    "schedule": {"l_schedule": [3, 1], "m_schedule": [2, 1], "mlp_bias": True, "layer_scale": True},
    "extra": {"extra_node_l": 1, "n_blocks": 2, "so3_readout": "mlp", "kmax": 2},
}
"""Embedding and read-out of different degrees, with and without biases."""

SEL = 400
"""In this mode, unlike the other, neighbours beyond so many are left out."""

LARGEST = 20
"""Atoms of a structure; what more would show is shown by the other mode."""

FORCE_RMSD = 1.7
ENERGY_STD = 2.5
COEFFICIENTS = {"start_pref_e": 3.0, "limit_pref_e": 2.0, "start_pref_f": 5.0, "limit_pref_f": 1.0}
NOISE_STD = 0.03
RATE = 0.4
"""Of the learning rate to its first value: between the coefficients."""


def model_of(changes: dict[str, Any]) -> dict[str, Any]:
    """DeePMD-kit's model section."""
    model = copy.deepcopy(find("base").model)
    model["descriptor"] |= {"sel": SEL, **changes}
    return model


def random_model(options: dict[str, Any]) -> Any:
    """A model in which nothing is zero, statistics included."""
    torch.manual_seed(0)
    model = get_model(options)
    model.set_active_mode("dens")
    randomise(model)
    with torch.no_grad():
        model.atomic_model.dens_force_rmsd.fill_(FORCE_RMSD)
        inner = model.atomic_model.dens_fitting_net.energy_head.bias_atom_e
        inner.copy_(torch.linspace(-1, 1, len(inner), dtype=torch.float64)[:, None])
    return model.eval()


def save(model: Any, options: dict[str, Any], path: Path) -> None:
    """A training checkpoint."""
    torch.save({"model": ModelWrapper(model, model_params=options).state_dict()}, path)


def opened(checkpoint: Path) -> Any:
    """The model of a checkpoint, whose tensors say which mode it has."""
    state = torch.load(checkpoint, weights_only=True)["model"]
    options = state["_extra_state"]["model_params"]
    wrapper = ModelWrapper(get_model(copy.deepcopy(options)), model_params=options)
    wrapper.load_state_dict(state)
    return wrapper.model["Default"].eval()


def answers(checkpoint: Path) -> dict[str, np.ndarray]:
    """Energies and forces as DeepPot says them, and what the heads say of displaced atoms."""
    potential, model = DeepPot(str(checkpoint)), opened(checkpoint)
    found: dict[str, np.ndarray] = {}
    for place, (name, given) in enumerate(inputs_for(find("base")).items()):
        if len(given["atype"]) > LARGEST:
            continue
        box = given["box"].reshape(1, 9) if given["box"].size else None
        coord, kinds = given["coord"].reshape(1, -1), given["atype"].tolist()
        energy, force, virial = potential.eval(coord, box, kinds)[:3]
        assert np.isnan(virial).all(), "direct forces have no virial"
        rng = np.random.default_rng(place)
        forces, mask = rng.normal(size=(1, len(kinds), 3)), rng.random((1, len(kinds))) < 0.5
        noisy = model(
            torch.as_tensor(coord).reshape(1, -1, 3),
            torch.as_tensor(given["atype"]).reshape(1, -1),
            box=None if box is None else torch.as_tensor(box),
            force_input=torch.as_tensor(forces),
            noise_mask=torch.as_tensor(mask),
        )
        said = given | {
            "energy": energy.reshape(()),
            "force": force[0],
            "force_input": forces[0],
            "noise_mask": mask[0],
            "noisy_energy": noisy["energy"].detach().numpy().reshape(()),
            "noisy_force": noisy["clean_force_norm"].detach().numpy()[0],
            "noise": noisy["denoising_force_norm"].detach().numpy()[0],
        }
        found |= {f"{name}/{key}": value for key, value in said.items()}
    return found


def losses(checkpoint: Path, frames: Path) -> dict[str, np.ndarray]:
    """The loss of two frames for both forms, without noise and with noise that is kept.

    The spread of the energies is one number, as `dp train` finds it; the model is put in its place.
    """
    options = model_of({})
    model = random_model(options)
    model.atomic_model.out_std.fill_(ENERGY_STD)
    save(model, options, checkpoint)
    read = {name: np.load(frames / "set.000" / f"{name}.npy")[:2] for name in LABELS}
    tensors = {name: torch.as_tensor(value) for name, value in read.items()}
    kinds = torch.tensor([int(word) for word in (frames / "type.raw").read_text().split()])
    label = {"energy": tensors["energy"][:, None], "force": tensors["force"]}
    label |= {"find_energy": 1.0, "find_force": 1.0}
    found: dict[str, np.ndarray] = dict(read)
    for form in ("mae", "mse"):
        for case, share in (("clean", None), ("all", None), ("some", 0.5)):
            asked = {"dens_prob": 0.0 if case == "clean" else 1.0, "dens_corrupt_ratio": share}
            loss = DeNSLoss(1.0, loss_func=form, dens_std=NOISE_STD, **COEFFICIENTS, **asked)
            kept: dict[str, torch.Tensor] = {}
            torch.manual_seed(5)
            model.train()
            place = {"atype": kinds[None].expand(2, -1), "box": tensors["box"]}
            _, value, _ = loss(
                {"coord": tensors["coord"].reshape(2, -1, 3), **place},
                Recording(model, kept),
                label,
                len(kinds),
                RATE,
            )
            found[f"{form}/{case}"] = value.detach().numpy()
            found |= {f"{form}/{case}/{key}": kept[key].numpy() for key in ("coord", "noise_mask")}
    return found


LABELS = ("coord", "box", "energy", "force")


class Recording:
    """A model that remembers what it was asked."""

    def __init__(self, model: Any, kept: dict[str, torch.Tensor]) -> None:
        self.model, self.kept = model, kept
        self.training, self.atomic_model = True, model.atomic_model

    def __call__(self, **given: torch.Tensor) -> Any:
        """Its answer."""
        self.kept |= {name: given[name].detach().clone() for name in ("coord", "noise_mask")}
        return self.model(**given)


def train(folder: Path, frames: Path) -> None:
    """Four steps of `dp --pt train`, whose checkpoint is brought here as trained.pt."""
    folder.mkdir()
    values = {
        "model": model_of({}),
        "optimizer": {"type": "HybridMuon"},
        "learning_rate": {"type": "exp", "start_lr": 1e-3, "stop_lr": 1e-5, "decay_steps": 3},
        "loss": {"type": "dens", "start_pref_e": 20, "start_pref_f": 20},
        "training": {
            "training_data": {"systems": [str(frames)], "batch_size": 2},
            "numb_steps": 4,
            "save_freq": 4,
            "seed": 1,
        },
    }
    (folder / "input.json").write_text(json.dumps(values))
    dp = Path(sys.executable).with_name("dp")
    words = [dp, "--pt", "train", "input.json", "--skip-neighbor-stat"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    (folder / "model.ckpt-4.pt").replace(folder.parent / "trained.pt")


def build(out: Path, frames: Path) -> None:
    """Everything."""
    out.mkdir(parents=True, exist_ok=True)
    for name, changes in MODELS.items():
        options = model_of(changes)
        save(random_model(options), options, out / f"{name}.pt")
        np.savez(out / f"{name}.npz", **answers(out / f"{name}.pt"))
    train(out / "training", frames)
    np.savez(out / "trained.npz", **answers(out / "trained.pt"))
    np.savez(out / "loss.npz", **losses(out / "uniform.pt", frames))


def main(words: list[str]) -> None:
    """Dispatch."""
    if words[:1] == ["eval"] and len(words) > 2 and len(words) % 2:
        for checkpoint, out in zip(words[1::2], words[2::2], strict=True):
            np.savez(out, **answers(Path(checkpoint)))
    elif len(words) == 2:
        build(Path(words[0]), Path(words[1]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
