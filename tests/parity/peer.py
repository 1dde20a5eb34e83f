"""Run DeePMD-kit on the option sets.  For the python of DeePMD-kit's own virtual environment.

    peer.py build OUT [NAME ...]                 make NAME.pt and NAME.npz for every option set
    peer.py eval CHECKPOINT STRUCTURES OUT ...   energies of any DeePMD checkpoints, three by three

NAME.npz and STRUCTURES (.npz) hold, per structure, `STRUCTURE/coord (N,3)` in Å,
`STRUCTURE/atype (N,)`, `STRUCTURE/box (3,3)` rows or size 0, and optionally
`STRUCTURE/charge_spin (2,)`; the output adds `energy` eV, `force` eV/Å, `virial (3,3)` eV and
`atom_energy`.  It needs nothing of dpa4sim.
"""

from __future__ import annotations

import os

os.environ.update(
    DEVICE="cpu",
    CUDA_VISIBLE_DEVICES="",
    DP_COMPILE_INFER="0",
    DP_INTERFACE_PREC="high",
    TF_CPP_MIN_LOG_LEVEL="3",
)
for _threads in ("OMP_NUM_THREADS", "DP_INTRA_OP_PARALLELISM_THREADS"):
    os.environ.setdefault(_threads, "1")
os.environ.setdefault("DP_INTER_OP_PARALLELISM_THREADS", "1")

import sys  # noqa: E402
import time  # noqa: E402
import zlib  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from deepmd.infer import DeepPot  # type: ignore[import-not-found]  # noqa: E402
from deepmd.pt.model.model import get_model  # type: ignore[import-not-found]  # noqa: E402
from deepmd.pt.train.wrapper import ModelWrapper  # type: ignore[import-not-found]  # noqa: E402
from deepmd.utils.argcheck import model_args  # type: ignore[import-not-found]  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from option_sets import all_sets, find, structures  # noqa: E402

if TYPE_CHECKING:
    from option_sets import OptionSet

VERSION_KEY = ".descriptor.version_tensor"
BLOCK_0 = "model.Default.atomic_model.descriptor.blocks.0."
FILM_STRENGTH = 0.5
LAYER_SCALE = 0.5


def perturb(name: str, value: torch.Tensor) -> torch.Tensor:
    """Random numbers of the size that training gives, whatever the initial value.

    Zero and nearly constant initial values would switch their branch off.  Seeded by the key, so
    that adding an option leaves the other weights as they are.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = torch.as_tensor(rng.standard_normal(tuple(value.shape)), dtype=value.dtype)
    if "strength_log" in name:
        return float(np.log(FILM_STRENGTH)) + 0.2 * noise
    if "layer_scale" in name or "residual_scale" in name:
        return LAYER_SCALE * (1 + 0.5 * noise)
    if "freqs" in name:
        return value * (1 + 0.03 * noise)
    if bool((value == 0).all()):
        fan_in = value.shape[-2] if value.ndim > 1 else 4
        return noise / fan_in**0.5
    if bool((value == value.flatten()[0]).all()):
        return value * (1 + 0.3 * noise)
    return value * (1 + 0.5 * noise)


def randomise(model: torch.nn.Module) -> None:
    """Perturb every parameter and every per-element energy."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(perturb(name, parameter))
        atomic = model.atomic_model
        for name in ("out_bias", "out_std"):
            getattr(atomic, name).copy_(perturb(name, getattr(atomic, name)))
        bias = atomic.fitting_net.bias_atom_e
        bias.copy_(perturb("bias_atom_e", bias))


def save_checkpoint(chosen: OptionSet, path: Path) -> None:
    """A training checkpoint of a random model."""
    torch.manual_seed(0)
    options = model_args().normalize_value(chosen.model) if chosen.normalized else chosen.model
    model = get_model(options)
    randomise(model)
    if chosen.branch is None:
        state = ModelWrapper(model, model_params=options).state_dict()
    else:
        models = {"other": get_model(options), chosen.branch: model}
        params = {"model_dict": dict.fromkeys(models, options)}
        state = ModelWrapper(models, model_params=params).state_dict()
    for key in [key for key in state if key.endswith(VERSION_KEY)]:
        if chosen.version is None:
            del state[key]
        else:
            state[key].fill_(chosen.version)
    if chosen.lora:
        state |= adapters(state)
    torch.save({"model": state}, path)
    torch.load(path, weights_only=True)


def adapters(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Rank-2 adapters A, B for the first SO(2) layer and the feed-forward of block 0."""
    added: dict[str, torch.Tensor] = {}

    def add(layer: str, weight: str, a: str, b: str) -> None:
        *degrees, n_in, n_out = state[f"{BLOCK_0}{layer}.{weight}"].shape
        rng = np.random.default_rng(zlib.crc32(f"{layer}{weight}".encode()))
        for key, shape in ((a, (*degrees, 2, n_in)), (b, (*degrees, n_out, 2))):
            added[f"{BLOCK_0}{layer}.{key}"] = torch.as_tensor(0.2 * rng.standard_normal(shape))
        added[f"{BLOCK_0}{layer}.lora_scaling"] = torch.tensor(0.7, dtype=torch.float64)

    add("ffns.0.so3_linear_1", "weight", "A_by_l", "B_by_l")
    add("so2_conv.so2_linears.0", "weight_m0", "A_m0", "B_m0")
    for m in range(2):
        add("so2_conv.so2_linears.0", f"weight_m.{m}", f"A_m.{m}", f"B_m.{m}")
    return added


def in_double_precision(checkpoint: Path) -> Path:
    """A copy of a float32 file that DeePMD-kit evaluates in float64, weights unchanged.

    `balance_weight` is a table of fractions that the file keeps in float32: made anew.
    """
    stored = torch.load(checkpoint, weights_only=True)
    params = stored["model"]["_extra_state"]["model_params"]
    for part in ("descriptor", "fitting_net"):
        params[part]["precision"] = "float64"
    fresh = ModelWrapper(get_model(params), model_params=params).state_dict()
    for key in stored["model"]:
        if key.endswith("balance_weight"):
            stored["model"][key] = fresh[key]
    copy = checkpoint.with_suffix(".double.pt")
    torch.save(stored, copy)
    return copy


def evaluate(
    checkpoint: Path, inputs: dict[str, dict[str, np.ndarray]], branch: str | None = None
) -> dict[str, np.ndarray]:
    """Energy, force, virial and atomic energy of each structure."""
    potential = DeepPot(str(checkpoint), head=branch)
    found: dict[str, np.ndarray] = {}
    for name, given in inputs.items():
        box = given["box"]
        extra: dict[str, Any] = {}
        if "charge_spin" in given:
            extra["charge_spin"] = given["charge_spin"].reshape(1, 2).astype(float)
        energy, force, virial, atom_energy, _ = potential.eval(
            given["coord"].reshape(1, -1),
            box.reshape(1, 9) if box.size else None,
            given["atype"].tolist(),
            atomic=True,
            **extra,
        )
        answers = {
            "energy": energy.reshape(()),
            "force": force.reshape(-1, 3),
            "virial": virial.reshape(3, 3),
            "atom_energy": atom_energy.reshape(-1),
        }
        found |= {f"{name}/{key}": value for key, value in (given | answers).items()}
    return found


def inputs_for(chosen: OptionSet) -> dict[str, dict[str, np.ndarray]]:
    """The arrays that `evaluate` takes, for every structure."""
    given = {}
    for one in structures():
        given[one.name] = {
            "coord": one.positions,
            "atype": one.types,
            "box": np.zeros(0) if one.cell is None else one.cell,
        }
        if chosen.charge_spin:
            given[one.name]["charge_spin"] = np.array([one.charge, one.spin])
    return given


def build(folder: Path, names: list[str]) -> None:
    """Write NAME.pt and NAME.npz; a set whose files are there is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for chosen in [find(name) for name in names] or all_sets():
        table, checkpoint = folder / f"{chosen.name}.npz", folder / f"{chosen.name}.pt"
        done = checkpoint.exists() and (table.exists() or not chosen.evaluated)
        if done and not names:
            continue
        start = time.perf_counter()
        save_checkpoint(chosen, checkpoint)
        if chosen.evaluated:
            source = in_double_precision(checkpoint) if chosen.single_precision else checkpoint
            np.savez(table, **evaluate(source, inputs_for(chosen), chosen.branch))
        print(f"{chosen.name:30s} {time.perf_counter() - start:6.2f} s", flush=True)


def evaluate_file(checkpoint: Path, table: Path, out: Path) -> None:
    """Evaluate any DeePMD checkpoint on the structures of an npz file."""
    inputs: dict[str, dict[str, np.ndarray]] = {}
    with np.load(table) as stored:
        for key in stored.files:
            structure, word = key.rsplit("/", 1)
            if word in ("coord", "atype", "box", "charge_spin"):
                inputs.setdefault(structure, {})[word] = stored[key]
    np.savez(out, **evaluate(checkpoint, inputs))


def main(words: list[str]) -> None:
    """Dispatch on the first word."""
    if words[:1] == ["build"] and len(words) >= 2:
        build(Path(words[1]), words[2:])
    elif words[:1] == ["eval"] and len(words) >= 4 and len(words) % 3 == 1:
        for triple in zip(words[1::3], words[2::3], words[3::3], strict=True):
            evaluate_file(*map(Path, triple))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
