"""Magnetic models of DeePMD-kit.  For the python of its own virtual environment.

    spin_peer.py build OUT [SYSTEM]     NAME.pt and NAME.npz of every set
    spin_peer.py eval FOLDER [SYSTEM]   NAME.npz of every NAME.pt

What is in an .npz is said in peer.py; besides, `spin (N,3)` in Bohr magnetons and the answer
`force_mag` in eV per Bohr magneton.  SYSTEM is a folder in DeePMD's npy layout with spins, of which
two frames are taken besides the structures drawn here.  It needs nothing of dpa4sim.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

from peer import randomise

import numpy as np  # isort: skip
import torch  # isort: skip
from deepmd.infer import DeepPot  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.model.model import get_model  # type: ignore[import-not-found]  # isort: skip
from deepmd.pt.train.wrapper import ModelWrapper  # type: ignore[import-not-found]  # isort: skip
from option_sets import ATOMIC_NUMBERS, BASE_DESCRIPTOR, BASE_FITTING  # isort: skip

TYPE_MAP = ["O", "Cu", "N"]
"""Elements that option_sets.py numbers; copper and nitrogen stand for magnetic ones."""

VIRTUAL = {"use_spin": [False, True, True], "virtual_scale": [0.314, 0.25]}
NATIVE = {"use_spin": [False, True, True], "scheme": "native"}
ZBL = {"bridging_method": "ZBL", "bridging_r_inner": 0.6, "bridging_r_outer": 1.1}
DEEP = {"n_blocks": 2, "lmax": 3, "mlp_bias": True, "n_focus": 2, "layer_scale": True}
GRIDS = {"n_blocks": 2, "message_node_so3": True, "ffn_so3_grid": True, "grid_branch": [0, 2, 2]}


def model_of(spin: dict[str, Any], extra: dict[str, Any] | None = None, **descriptor: Any) -> Any:
    """DeePMD-kit's model section; `sel` is enough for every neighbour, for it cuts here."""
    return {
        "type": "dpa4",
        "type_map": list(TYPE_MAP),
        "descriptor": {**BASE_DESCRIPTOR, "sel": 400, **descriptor},
        "fitting_net": dict(BASE_FITTING),
        "spin": dict(spin),
        **(extra or {}),
    }


SETS: dict[str, tuple[dict[str, Any], float]] = {
    "virtual": (model_of(VIRTUAL), 1.2),
    "virtual_deep": (model_of(VIRTUAL, **DEEP), 1.2),
    "virtual_grids": (model_of(VIRTUAL | {"virtual_scale": 0.2}, **GRIDS), 1.2),
    "virtual_pairs": (
        model_of({"use_spin": ["N"], "virtual_scale": [0.1, 0.2, 0.4]}, exclude_types=[[0, 2]]),
        1.1,
    ),
    "virtual_scatter": (model_of(VIRTUAL, n_atten_head=0, use_env_seed=False), 1.2),
    "virtual_zbl": (model_of(VIRTUAL, ZBL), 1.2),
    "virtual_charged": (
        model_of(VIRTUAL, add_chg_spin_ebd=True, default_chg_spin=[-1.0, 2.0]),
        1.2,
    ),
    "virtual_1_0": (model_of(VIRTUAL), 1.0),
    "native": (model_of(NATIVE, n_blocks=2), 1.2),
    "native_deep": (model_of(NATIVE, extra_node_l=1, **DEEP), 1.2),
    "native_grids": (model_of(NATIVE | {"use_spin": [2]}, **GRIDS), 1.2),
    "native_no_seed": (model_of(NATIVE, use_env_seed=False), 1.2),
    "native_zbl": (model_of(NATIVE, ZBL), 1.2),
    "native_1_1": (model_of(NATIVE), 1.1),
    "native_1_0": (model_of(NATIVE), 1.0),
    "native_asleep": (model_of(NATIVE | {"use_spin": [False] * 3}), 1.2),
}
"""Model section and version tensor of each checkpoint."""


def save_checkpoint(model: dict[str, Any], version: float, path: Path) -> None:
    """A training checkpoint of a random model."""
    torch.manual_seed(0)
    built = get_model(copy.deepcopy(model))
    randomise(built)
    state = ModelWrapper(built, model_params=model).state_dict()
    for key in [key for key in state if key.endswith(".descriptor.version_tensor")]:
        state[key].fill_(version)
    torch.save({"model": state}, path)


def structures(system: Path | None) -> dict[str, dict[str, np.ndarray]]:
    """A cluster, a narrow skewed cell, a rattled rock salt; frames of a system in npy layout."""
    rng = np.random.default_rng(11)
    cluster = [[0, 0, 0], [1.9, 0.2, 0.1], [0.3, 2.1, -0.2], [-0.2, 0.1, 1.0], [9, 0, 0]]
    skewed = np.array([[4.2, 0, 0], [2.9, 3.6, 0], [-1.7, 1.4, 4.8]])
    sites = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)])
    salt, kinds = 2.1 * sites + 0.08 * rng.normal(size=(8, 3)), sites.sum(1) % 2
    found = {
        "cluster": (np.array(cluster, float), [1, 0, 2, 1, 2], np.zeros(0)),
        "skewed": (rng.random((4, 3)) @ skewed, [1, 0, 2, 1], skewed),
        "salt": (salt, kinds, 4.2 * np.eye(3)),
    }
    given = {
        name: {"coord": coord, "atype": np.asarray(types), "box": box}
        for name, (coord, types, box) in found.items()
    }
    for one in given.values():
        one["spin"] = rng.normal(size=one["coord"].shape)
    given["salt"]["spin"][3] = 0.0  # without a moment, among others that have one
    if system is not None:
        given |= frames(system)
    return given


def frames(system: Path) -> dict[str, dict[str, np.ndarray]]:
    """The first and the last frame, nickel under the name of copper."""
    types = np.loadtxt(system / "type.raw", dtype=int)
    names = (system / "type_map.raw").read_text().split()
    kinds = np.array([TYPE_MAP.index({"Ni": "Cu"}.get(names[t], names[t])) for t in types])
    parts = {name: np.load(system / "set.000" / f"{name}.npy") for name in ("coord", "box", "spin")}
    shapes = {"coord": (-1, 3), "box": (3, 3), "spin": (-1, 3)}
    return {
        f"frame{index}": {"atype": kinds}
        | {name: values[index].reshape(shapes[name]) for name, values in parts.items()}
        for index in (0, -1)
    }


def answers(checkpoint: Path, system: Path | None) -> dict[str, np.ndarray]:
    """Energy, force, magnetic force, virial and atomic energy of each structure."""
    potential, found = DeepPot(str(checkpoint)), {}
    for name, given in structures(system).items():
        box, n_atoms = given["box"], len(given["atype"])
        results = potential.deep_eval.eval(
            given["coord"].reshape(1, -1),
            box.reshape(1, 9) if box.size else None,
            given["atype"],
            True,
            spin=given["spin"].reshape(1, -1),
        )
        said = {
            "energy": results["energy_redu"].reshape(()),
            "force": results["energy_derv_r"].reshape(-1, 3),
            "force_mag": results["energy_derv_r_mag"].reshape(-1, 3),
            "virial": results["energy_derv_c_redu"].reshape(3, 3),
            "atom_energy": results["energy"].reshape(-1)[:n_atoms],
            "numbers": np.array([ATOMIC_NUMBERS[TYPE_MAP[kind]] for kind in given["atype"]]),
        }
        found |= {f"{name}/{key}": value for key, value in (given | said).items()}
    return found


def main(words: list[str]) -> None:
    """Dispatch on the first word."""
    if words[:1] not in (["build"], ["eval"]) or len(words) not in (2, 3):
        sys.exit(__doc__)
    folder, system = Path(words[1]), Path(words[2]) if len(words) == 3 else None
    if words[0] == "build":
        folder.mkdir(parents=True, exist_ok=True)
        for name, (model, version) in SETS.items():
            save_checkpoint(model, version, folder / f"{name}.pt")
    for checkpoint in folder.glob("*.pt"):
        np.savez(checkpoint.with_suffix(".npz"), **answers(checkpoint, system))


if __name__ == "__main__":
    main(sys.argv[1:])
