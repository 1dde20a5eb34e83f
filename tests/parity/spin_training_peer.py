"""DeePMD-kit's loss of magnetic models.  For the python of its own virtual environment.

    spin_training_peer.py FOLDER

FOLDER has frames.npz of one composition: coord, box, spin, energy, force, force_mag, virial, one
row to a frame, and atype.  Every NAME.pt there gets a NAME.npz with the model's `energy`, `force`,
`force_mag` and `virial` on them and, for each form, `FORM` (the loss with the weights below) and
its parts.  It needs nothing of dpa4sim.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from deepmd.pt.loss import EnergySpinLoss  # type: ignore[import-not-found]
from deepmd.pt.model.model import get_model  # type: ignore[import-not-found]
from deepmd.pt.train.wrapper import ModelWrapper  # type: ignore[import-not-found]

WEIGHTS = {"e": 3.0, "fr": 5.0, "fm": 7.0, "v": 2.0}


def answer(checkpoint: Path, frames: Path) -> None:
    """Load the weights, ask the model and both forms of its loss."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    params = state["_extra_state"]["model_params"]
    model = get_model(params)
    ModelWrapper(model, model_params=params).load_state_dict(state)
    given = {name: torch.tensor(value) for name, value in np.load(frames).items()}
    n_frames, n_atoms = given["coord"].shape[:2]
    atype = given["atype"].long().expand(n_frames, n_atoms)
    inputs = {"coord": given["coord"], "atype": atype, "spin": given["spin"], "box": given["box"]}
    label = {name: given[name] for name in ("energy", "force", "force_mag", "virial")}
    label |= {f"find_{name}": 1.0 for name in tuple(label)}
    found: dict[str, np.ndarray] = {}
    for form in ("mse", "mae"):
        prefactors = {f"start_pref_{name}": value for name, value in WEIGHTS.items()}
        prefactors |= {f"limit_pref_{name}": value for name, value in WEIGHTS.items()}
        loss = EnergySpinLoss(1.0, loss_func=form, intensive_ener_virial=True, **prefactors)
        said, total, parts = loss(inputs, model, label, n_atoms, 1.0)
        found[form] = np.array(float(total.detach()))
        found |= {f"{form}_{name}": np.array(float(value)) for name, value in parts.items()}
    for name in ("energy", "force", "force_mag", "virial"):
        found[name] = said[name].detach().numpy()
    np.savez(checkpoint.with_suffix(".npz"), **found)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for path in sorted(Path(sys.argv[1]).glob("*.pt")):
        answer(path, Path(sys.argv[1]) / "frames.npz")
