"""Measure the seed model on what it was not trained on, and write its card.

    python workflows/seed_card.py seed.h5 seed.safetensors volumes.json demo/relaxed.extxyz

Errors on the test split (compounds that no training frame comes from) by kind of frame, and relaxed
volumes of the demo crystals beside CHGNet's own (workflows/seed_volumes.py) and the measured ones.
Writes dpa4sim/models/seed.safetensors, with the errors in its header, and dpa4sim/models/seed.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ase.io
import h5py
import numpy as np
import torch

from dpa4sim.batch import Batch
from dpa4sim.potential import Potential, load
from dpa4sim.units import GPA_PER_EV_A3

MODELS = Path(__file__).parents[1] / "dpa4sim" / "models"
CALM = ("relaxed", "volume", "strain", "rattle", "start", "path", "supercell")
"""Kinds of frame near equilibrium; the others are hot, squeezed or swapped."""


def held_out(potential: Potential, data: Path) -> dict[str, dict[str, float]]:
    """Mean absolute errors on the test split: all frames, calm ones, the others."""
    errors: dict[str, list[np.ndarray]] = {"energy": [], "force": [], "stress": [], "calm": []}
    with h5py.File(data) as file:
        frames = np.flatnonzero(file["split"].asstr()[:] == "test")
        kinds, offsets = file["kind"].asstr()[:], file["offsets"][:]
        for start in range(0, len(frames), 64):
            chosen = frames[start : start + 64]
            rows = [slice(offsets[f], offsets[f + 1]) for f in chosen]
            batch = Batch.concatenate(
                Batch.single(
                    torch.tensor(file["positions"][row]),
                    torch.tensor(file["atomic_numbers"][row].astype(np.int64)),
                    torch.tensor(file["cell"][f]),
                    True,
                )
                for f, row in zip(chosen, rows, strict=True)
            )
            found = potential(batch)
            forces = np.concatenate([file["forces"][row] for row in rows])
            size = batch.n_atoms.numpy()
            energy = np.array([file["energy"][f] for f in chosen])
            stress = np.stack([file["stress"][f] for f in chosen])
            of_frame = np.abs(found.forces.numpy() - forces).mean(1)
            ends = np.cumsum(size)[:-1]
            errors["energy"].append(np.abs(found.energy.numpy() - energy) / size)
            errors["force"].append(np.array([part.mean() for part in np.split(of_frame, ends)]))
            errors["stress"].append(np.abs(found.stress.numpy() - stress).mean((1, 2)))
            errors["calm"].append(np.isin([k.rstrip("23") for k in kinds[chosen]], CALM))
    joined = {name: np.concatenate(parts) for name, parts in errors.items()}
    groups = {"all": np.ones(len(frames), bool), "calm": joined["calm"], "hot": ~joined["calm"]}
    return {
        name: {
            "frames": int(mask.sum()),
            "energy_meV_per_atom": 1e3 * float(joined["energy"][mask].mean()),
            "force_meV_per_A": 1e3 * float(joined["force"][mask].mean()),
            "stress_GPa": GPA_PER_EV_A3 * float(joined["stress"][mask].mean()),
        }
        for name, mask in groups.items()
    }


def volumes(teacher: Path, relaxed: Path) -> dict[str, float]:
    """Relaxed volumes of the demo crystals against CHGNet's and the measured ones, percent."""
    reference = json.loads(teacher.read_text())
    to_teacher, to_measured, teachers = [], [], []
    for atoms in ase.io.read(relaxed, ":"):
        entry = reference[atoms.info["name"]]
        volume = atoms.get_volume() / len(atoms)
        taught, measured = entry["volume_per_atom_chgnet"], entry["volume_per_atom_experiment"]
        to_teacher.append(100 * abs(volume / taught - 1))
        to_measured.append(100 * abs(volume / measured - 1))
        teachers.append(100 * abs(taught / measured - 1))
    return {
        "crystals": len(to_teacher),
        "median_to_chgnet_percent": float(np.median(to_teacher)),
        "within_5_percent_of_chgnet": float(np.mean(np.array(to_teacher) < 5)),
        "median_to_experiment_percent": float(np.median(to_measured)),
        "chgnet_to_experiment_percent": float(np.median(teachers)),
    }


def page(potential: Potential, card: dict) -> str:
    """The model card as Markdown."""
    config, errors, volume = potential.config, card["held_out"], card["demo_volumes"]
    weights = sum(p.numel() for p in potential.model.parameters())
    rows = "\n".join(
        f"| {name} | {e['frames']} | {e['energy_meV_per_atom']:.0f} | {e['force_meV_per_A']:.0f} "
        f"| {e['stress_GPa']:.2f} |"
        for name, e in errors.items()
    )
    near = 100 * volume["within_5_percent_of_chgnet"]
    size = f"{config.n_blocks} blocks, L = {config.max_degree}, {config.channels} channels"
    return f"""# seed

A small DPA4 model for demonstrations and tests: {weights:,} weights, {size},
cutoff {config.cutoff} Å, {len(config.species)} elements.

**Elements**: {" ".join(config.species)}

**Labels**: {card["labels"]}.
The model learns CHGNet's energies, with its errors; it has never seen DFT. Energies carry the
corrections that CHGNet was trained with.

**Training set**: {card["training_frames"]:,} frames of prototype crystals, 1 to 40 atoms: near
equilibrium, strained, rattled, squeezed, with swapped species. `workflows/seed_data.py` makes them,
`seed_labels.py` labels them, `seed_train.py` trains (AdamW, averaged weights, one processor core),
`seed_card.py` wrote this page. Every demo crystal's primitive cell is among the training compounds.

## Errors on held-out compounds (mean absolute, against CHGNet)

| frames | number | energy meV/atom | force meV/Å | stress GPa |
|---|---|---|---|---|
{rows}

"calm" frames are relaxed, strained or rattled by up to 0.15 Å; "hot" ones are squeezed, swapped, or
rattled further, with forces up to 30 eV/Å. "all" is both.

## Relaxed volumes of the {volume["crystals"]} demo crystals

| median deviation | |
|---|---|
| from CHGNet's own relaxed volume | {volume["median_to_chgnet_percent"]:.1f} % |
| from the measured volume | {volume["median_to_experiment_percent"]:.1f} % |
| CHGNet itself from the measured volume | {volume["chgnet_to_experiment_percent"]:.1f} % |

{near:.0f} % of the crystals end within 5 % of CHGNet's volume.

## What it is not for

Publishing. Surfaces, molecules, liquids, magnetism, charged systems, elements outside the list, and
anything where an error of the size above matters.

**Licence**: {card["licence"]}.
"""


def main() -> None:
    """Measure, write the model with its card, write the page."""
    data, model, teacher, relaxed = map(Path, sys.argv[1:5])
    potential = load(model)
    paths = {"data", "out", "start"}
    arguments = {k: v for k, v in potential.card["arguments"].items() if k not in paths}
    card = {**potential.card, "arguments": arguments, "held_out": held_out(potential, data)}
    card["demo_volumes"] = volumes(teacher, relaxed)
    MODELS.mkdir(exist_ok=True)
    Potential(potential.model, card=card).save(MODELS / "seed.safetensors")
    (MODELS / "seed.md").write_text(page(potential, card))
    print(page(potential, card))


if __name__ == "__main__":
    main()
