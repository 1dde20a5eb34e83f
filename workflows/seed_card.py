"""Measure a model on what it was not trained on, and ship it with its card.

    python workflows/seed_volumes.py volumes.json                       # where chgnet is installed
    python workflows/demo.py --model MODEL --out demo
    python workflows/seed_card.py MODEL --train universal_train.h5 --test universal_test.h5 \
        --volumes volumes.json --relaxed demo/relaxed.extxyz [--name seed]

Errors on the test store (formulas that no training frame has) by kind of frame; formation energies
and hulls of its compounds; relaxed volumes of the demo crystals beside CHGNet's own and the
measured ones.  Writes dpa4sim/models/NAME.safetensors, with the numbers in its header, and NAME.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from pymatgen.core import Composition
from seed_hull import Phase, formation_agreement, hull_agreement

from dpa4sim.data.store import Store
from dpa4sim.potential import Potential, load
from dpa4sim.train.build import Split
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.report import shown
from dpa4sim.train.validation import batches_of, validation_errors

MODELS = Path(__file__).parents[1] / "dpa4sim" / "models"
LABELS = "CHGNet 0.4.2 (energies, forces, stresses of a model, not DFT)"
LICENCE = "Apache-2.0; labels from CHGNet (BSD-3-Clause)"
KINDS = {
    "relaxed": "the end of a short relaxation by CHGNet",
    "path": "on the way there",
    "volume": "isotropic, 0.6 to 1.8 times the volume and beyond",
    "strain": "strained up to 6 %, rattled by up to 0.08 Å",
    "thermal": "harmonic snapshots of 300 to 1500 K",
    "dynamics": "36 fs later, by CHGNet's dynamics",
    "swap": "two atoms exchanged",
    "vacancy": "one atom missing",
    "slab": "8 Å of vacuum",
    "squeeze": "one pair at 0.68 to 0.88 of its distance",
    "violent": "rattled by 0.2 to 0.4 Å",
    "stretched": "an element on its way to free atoms",
}


def held_out(potential: Potential, store: Store) -> dict[str, dict[str, float]]:
    """Mean absolute errors of all frames and of each kind."""
    of_kind = {name: store.subset_of == i for i, name in enumerate(store.subsets)}
    groups = {"all": np.ones(len(store), bool)}
    groups |= {name: of_kind[name] for name in sorted(of_kind, key=order_of)}
    return {
        name: errors_of(potential, Split(store, np.flatnonzero(mask)))
        for name, mask in groups.items()
    }


def order_of(kind: str) -> int:
    """Where a kind stands in the table; unknown ones at its end."""
    return [*KINDS, kind].index(kind)


def errors_of(potential: Potential, part: Split) -> dict[str, float]:
    """Mean absolute errors in the units of the card."""
    errors = shown(validation_errors(potential, part, Ranks()))
    return {
        "frames": len(part.frames),
        "energy_meV_per_atom": errors["energy_mae"],
        "force_meV_per_A": errors["force_mae"],
        "stress_GPa": errors["stress_mae"],
    }


def phases(potential: Potential, store: Store) -> list[Phase]:
    """The relaxed compounds of a store with both energies."""
    if "relaxed" not in store.subsets:
        return []
    rows = np.flatnonzero(store.subset_of == store.subsets.index("relaxed"))
    found = []
    for labelled in batches_of(Split(store, rows)):
        energies = potential(labelled.batch).energy.tolist()
        systems = labelled.batch.split()
        for system, label, energy in zip(systems, labelled.energy.tolist(), energies, strict=True):
            symbols, counts = np.unique(system.atomic_numbers.numpy(), return_counts=True)
            composition = Composition(dict(zip(symbols.tolist(), counts.tolist(), strict=True)))
            n_atoms = counts.sum()
            found.append(Phase(composition, label / n_atoms, energy / n_atoms))
    return found


def volumes(teacher: Path, relaxed: Path) -> dict[str, float]:
    """Relaxed volumes of the demo crystals against CHGNet's and the measured ones, percent."""
    reference = json.loads(teacher.read_text())
    to_teacher, to_measured, teachers = [], [], []
    for atoms in ase.io.iread(relaxed):
        entry = reference[atoms.info["name"]]
        volume = atoms.get_volume() / len(atoms)
        taught, measured = entry["volume_per_atom_chgnet"], entry["volume_per_atom_experiment"]
        to_teacher.append(100 * abs(volume / taught - 1))
        to_measured.append(100 * abs(volume / measured - 1))
        teachers.append(100 * abs(taught / measured - 1))
    return {
        "crystals": len(to_teacher),
        "median_to_chgnet_percent": float(np.median(to_teacher)),
        "largest_to_chgnet_percent": float(np.max(to_teacher)),
        "within_5_percent_of_chgnet": float(np.mean(np.array(to_teacher) < 5)),
        "median_to_experiment_percent": float(np.median(to_measured)),
        "chgnet_to_experiment_percent": float(np.median(teachers)),
    }


def card_of(potential: Potential, train: Store, test: Store) -> dict[str, Any]:
    """What the model file says about itself, without the paths of the machine that trained it."""
    card = json.loads(json.dumps(potential.card))
    data = card.get("training", {}).get("settings", {}).get("data", {})
    data |= {key: Path(data[key]).name for key in ("train", "valid") if data.get(key)}
    known, unknown = phases(potential, train), phases(potential, test)
    return card | {
        "labels": LABELS,
        "licence": LICENCE,
        "training_frames": len(train),
        "held_out": held_out(potential, test),
        "formation_energies": formation_agreement(known, unknown),
        "hull": hull_agreement(known, unknown),
    }


def page(name: str, potential: Potential, card: dict[str, Any]) -> str:
    """The model card as Markdown."""
    config = potential.config
    weights = sum(p.numel() for p in potential.model.parameters())
    size = f"{config.n_blocks} blocks, L = {config.max_degree}, {config.channels} channels"
    return f"""# {name}

A small DPA4 model for demonstrations and tests: {weights:,} weights, {size},
cutoff {config.cutoff} Å, {len(config.species)} elements.

**Elements**: {" ".join(config.species)}

**Labels**: {card["labels"]}.
The model learns CHGNet's energies, with its errors; it has never seen DFT. Energies carry the
corrections that CHGNet was trained with.

**Training set**: {card["training_frames"]:,} frames of known crystals with other elements in them,
and of every element. `workflows/seed_data.py` and `seed_frames.py` make them, `seed_labels.py`
labels them, `seed_start.py` takes the weights of an earlier, smaller set to begin with,
`dpa4sim train workflows/train/universal.toml` trains, `seed_card.py` wrote this page.
Every demo crystal's primitive cell is among the training compounds.

## Errors on held-out formulas (mean absolute, against CHGNet)

| frames | number | energy meV/atom | force meV/Å | stress GPa | what they are |
|---|---|---|---|---|---|
{_error_rows(card["held_out"])}

{_agreement(card["formation_energies"], card["hull"])}
{_volumes(card["demo_volumes"])}
## What it is not for

Publishing. Molecules, liquids, magnetism, charged systems, elements outside the list, and anything
where an error of the size above matters.

**Licence**: {card["licence"]}.
"""


def _error_rows(errors: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"| {kind} | {e['frames']} | {e['energy_meV_per_atom']:.0f} | {e['force_meV_per_A']:.0f} "
        f"| {e['stress_GPa']:.2f} | {KINDS.get(kind, '')} |"
        for kind, e in errors.items()
    )


def _agreement(formation: dict[str, float], hull: dict[str, float]) -> str:
    text = "## Formation energies and hulls of held-out compounds\n\n"
    if not formation["compounds"]:
        return text + "None could be compared.\n"
    text += (
        f"Formation energies of {formation['compounds']} compounds: mean absolute difference from "
        f"CHGNet's\n{formation['mae_meV_per_atom']:.0f} meV/atom, R² {formation['r2']:.3f}.\n"
    )
    if not hull["compounds"]:
        return text
    return text + (
        f"\nAbove or below the hull of the training compounds: {hull['compounds']} compounds of "
        f"{hull['systems']} systems,\n{100 * hull['same_sign']:.0f} % on the same side; "
        f"{hull['below_by_chgnet']} below by CHGNet, {hull['below_by_model']} by the model, "
        f"{hull['below_by_both']} by both;\nmean absolute difference of the height "
        f"{hull['mae_meV_per_atom']:.0f} meV/atom. Each model by its own hull, at CHGNet's "
        "geometries.\n"
    )


def _volumes(volume: dict[str, float]) -> str:
    near = 100 * volume["within_5_percent_of_chgnet"]
    return f"""## Relaxed volumes of the {volume["crystals"]} demo crystals

| median deviation | |
|---|---|
| from CHGNet's own relaxed volume | {volume["median_to_chgnet_percent"]:.1f} % |
| from the measured volume | {volume["median_to_experiment_percent"]:.1f} % |
| CHGNet itself from the measured volume | {volume["chgnet_to_experiment_percent"]:.1f} % |

{near:.0f} % of the crystals end within 5 % of CHGNet's volume; the farthest is off by
{volume["largest_to_chgnet_percent"]:.0f} %.
"""


def main() -> None:
    """Measure, write the model with its card, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    for name in ("train", "test", "volumes", "relaxed"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--name", default="seed", help="of the model that is shipped [seed]")
    args = parser.parse_args()
    potential = load(args.model)
    card = card_of(potential, Store(args.train), Store(args.test))
    card["demo_volumes"] = volumes(args.volumes, args.relaxed)
    Potential(potential.model, card=card).save(MODELS / f"{args.name}.safetensors")
    text = page(args.name, potential, card)
    (MODELS / f"{args.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
