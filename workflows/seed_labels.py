"""Label the seed structures with CHGNet and store them in one HDF5 file.

    python workflows/seed_labels.py OUTPUT_DIRECTORY [--seed 0] [--limit N] [--merge-only]

Runs in an environment that has chgnet (0.4.2, weights inside the package).  The labels are CHGNet
labels, not DFT.  Compounds are worked off in chunks of 20: coarse volume scan, short cell
relaxation, perturbed frames, labels.  Running the command again resumes with the compounds that
no chunk on disk has; the merge writes `seed.h5` from the chunks that are there.
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from ase.filters import FrechetCellFilter
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.units import GPa
from chgnet.model import CHGNet, CHGNetCalculator
from pymatgen.io.ase import AseAtomsAdaptor
from seed_data import Compound, perturbed_frames, seed_compounds, shortest_contact

CHUNK = 20  # compounds per file
BATCH = 8  # structures per CHGNet call, the fastest on one CPU core
MAX_FORCE = 30.0  # eV/Å
SCAN = np.linspace(0.90, 1.14, 9)  # linear scale factors of the first volume scan
SCANS = 3  # scan windows at most, each up to 23 % longer lattice vectors than the one before
RELAX_STEPS = 16
RELAX_FMAX = 0.05  # eV/Å
LABELS = "CHGNet 0.3.0 weights of chgnet 0.4.2"

Frame = dict[str, Any]


def predict(model: CHGNet, frames: list[Atoms], task: str) -> list[dict[str, np.ndarray] | None]:
    """CHGNet on a list of structures, batched by size; None where an atom has no neighbour."""
    graphs = []
    for atoms in frames:
        try:
            graphs.append(model.graph_converter(AseAtomsAdaptor.get_structure(atoms)))
        except ValueError:
            graphs.append(None)
    usable = [index for index, graph in enumerate(graphs) if graph is not None]
    usable.sort(key=lambda index: len(frames[index]))
    answers: list[dict[str, np.ndarray] | None] = [None] * len(frames)
    for start in range(0, len(usable), BATCH):
        part = usable[start : start + BATCH]
        batch = model.predict_graph([graphs[index] for index in part], task=task, batch_size=BATCH)
        for index, answer in zip(part, [batch] if len(part) == 1 else batch, strict=True):
            answers[index] = answer
    return answers


def scaled(atoms: Atoms, factor: float) -> Atoms:
    """The same crystal with its lattice vectors multiplied by `factor`."""
    copy = atoms.copy()
    copy.set_cell(atoms.cell[:] * factor, scale_atoms=True)
    return copy


def best_volumes(model: CHGNet, compounds: list[Compound]) -> list[Atoms | None]:
    """The lowest point of an isotropic energy scan, refined by a parabola; None without minimum.

    The scan moves on to larger cells, `SCANS` times at most, where the largest one is the lowest.
    """
    chosen: list[Atoms | None] = [None] * len(compounds)
    pending = list(range(len(compounds)))
    for factors in (SCAN * (SCAN[-1] / SCAN[1]) ** shift for shift in range(SCANS)):
        starts = [scaled(compounds[index].atoms, f) for index in pending for f in factors]
        answers = predict(model, starts, "e")
        energies = np.array([np.nan if a is None else float(a["e"]) for a in answers])
        higher = []
        for index, energy in zip(pending, energies.reshape(-1, len(factors)), strict=True):
            if np.isnan(energy).any():
                continue
            if energy.argmin() == len(factors) - 1:
                higher.append(index)
                continue
            chosen[index] = scaled(compounds[index].atoms, parabola_minimum(factors, energy))
        pending = higher
    return chosen


def parabola_minimum(factors: np.ndarray, energy: np.ndarray) -> float:
    """The minimum of the parabola through the lowest point and its neighbours, in the range."""
    low = int(np.clip(energy.argmin(), 1, len(factors) - 2))
    curve = np.polyfit(factors[low - 1 : low + 2], energy[low - 1 : low + 2], 2)
    factor = -curve[1] / (2 * curve[0]) if curve[0] > 0 else factors[low]
    return float(np.clip(factor, factors[0] - 0.03, factors[-1]))


def relax_cell(
    calculator: CHGNetCalculator, atoms: Atoms, steps: int, fmax: float
) -> tuple[Atoms, bool]:
    """Relax cell and positions with BFGS; returns the last structure and whether it converged.

    Args:
        fmax: largest force, and largest cell gradient per atom (eV/Å).
    """
    moving = atoms.copy()
    moving.calc = calculator
    try:
        converged = bool(
            BFGS(FrechetCellFilter(moving), logfile=None, maxstep=0.1).run(fmax=fmax, steps=steps)
        )
    except (ValueError, np.linalg.LinAlgError):
        return atoms.copy(), False
    return Atoms(moving.numbers, moving.positions, cell=moving.cell, pbc=True), converged


def compound_frames(
    calculator: CHGNetCalculator, compound: Compound, start: Atoms, seed: int
) -> list[Atoms]:
    """The perturbed frames of the relaxed compound, and two frames of a long way down to it."""
    path: dict[str, Atoms] = {}
    end, converged = relax_cell(calculator, start, RELAX_STEPS // 4, RELAX_FMAX)
    if not converged:
        path = {"start": start.copy(), "path": end.copy()}
        end, _ = relax_cell(calculator, end, RELAX_STEPS, RELAX_FMAX)
    if not 0.5 < end.get_volume() / start.get_volume() < 1.6 or shortest_contact(end) < 0.6:
        end = start
    for kind, atoms in path.items():
        atoms.info = {"kind": kind}
    rng = np.random.default_rng([seed, *compound.label.encode()])
    return [*perturbed_frames(end, rng), *path.values()]


def labelled(model: CHGNet, frames: list[Atoms], owners: list[Compound]) -> list[Frame]:
    """Energy (eV), forces (eV/Å) and stress (eV/Å^3, tension positive) of the acceptable frames."""
    result = []
    for atoms, owner, answer in zip(frames, owners, predict(model, frames, "efs"), strict=True):
        if answer is None or not np.isfinite(answer["f"]).all():
            continue
        if np.linalg.norm(answer["f"], axis=1).max() > MAX_FORCE:
            continue
        result.append(
            {
                "positions": atoms.positions,
                "atomic_numbers": atoms.numbers,
                "forces": answer["f"].astype(np.float64),
                "cell": np.asarray(atoms.cell),
                "energy": float(answer["e"]) * len(atoms),
                "stress": answer["s"].astype(np.float64) * GPa,
                "label_of_origin": owner.label,
                "kind": atoms.info["kind"],
                "split": owner.split,
            }
        )
    return result


def pack(frames: list[Frame]) -> dict[str, np.ndarray]:
    """Frames to flat arrays: atoms concatenated, `offsets` (frame + 1) delimit them."""
    packed = {
        name: np.concatenate([frame[name] for frame in frames])
        for name in ("positions", "atomic_numbers", "forces")
    }
    packed["offsets"] = np.cumsum([0, *(len(frame["positions"]) for frame in frames)])
    for name in ("cell", "energy", "stress", "label_of_origin", "kind", "split"):
        packed[name] = np.array([frame[name] for frame in frames])
    return packed


def write_chunk(
    path: Path, calculator: CHGNetCalculator, compounds: list[Compound], seed: int
) -> int:
    """Relax, perturb and label one chunk; the file appears complete or not at all."""
    model, frames, owners = calculator.model, [], []
    for compound, start in zip(compounds, best_volumes(model, compounds), strict=True):
        if start is None:
            continue
        new = compound_frames(calculator, compound, start, seed)
        frames += new
        owners += [compound] * len(new)
    done = labelled(model, frames, owners)
    if not done:
        return 0
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **pack(done))
    partial.rename(path)
    return len(done)


def merge(directory: Path) -> Path:
    """Concatenate every chunk into `seed.h5`."""
    chunks = [dict(np.load(path)) for path in sorted(directory.glob("chunks/chunk_????.npz"))]
    shift = np.cumsum([0, *(len(chunk["positions"]) for chunk in chunks)])
    output, partial = directory / "seed.h5", directory / "seed.partial.h5"
    with h5py.File(partial, "w") as store:
        store.attrs["labels"] = LABELS
        store.attrs["units"] = "positions, cell Å; energy eV (total); forces eV/Å; stress eV/Å^3"
        for name in chunks[0]:
            if name == "offsets":
                ends = [
                    chunk["offsets"][1:] + start
                    for chunk, start in zip(chunks, shift, strict=False)
                ]
                store["offsets"] = np.concatenate([[0], *ends])
                continue
            joined = np.concatenate([chunk[name] for chunk in chunks])
            if joined.dtype.kind == "U":
                joined = joined.astype(h5py.string_dtype())
            store[name] = joined
    partial.rename(output)
    return output


def neighbours_per_atom(store: h5py.File, cutoff: float, every: int) -> np.ndarray:
    """Mean number of neighbours within `cutoff` Å, of every n-th frame."""
    offsets = store["offsets"][:]
    counts = []
    for frame in range(0, len(offsets) - 1, every):
        atoms = Atoms(
            store["atomic_numbers"][offsets[frame] : offsets[frame + 1]],
            store["positions"][offsets[frame] : offsets[frame + 1]],
            cell=store["cell"][frame],
            pbc=True,
        )
        counts.append(len(neighbor_list("i", atoms, cutoff)) / len(atoms))
    return np.array(counts)


def print_statistics(path: Path) -> None:
    """Counts, ranges and neighbour numbers of the finished store."""
    with h5py.File(path) as store:
        offsets, numbers = store["offsets"][:], store["atomic_numbers"][:]
        sizes = np.diff(offsets)
        labels, splits = store["label_of_origin"].asstr()[:], store["split"].asstr()[:]
        print(f"{len(sizes)} frames, {offsets[-1]} atoms, {len(set(labels))} compounds")
        print(f"atoms per frame: mean {sizes.mean():.1f}, {sizes.min()} to {sizes.max()}")
        print(f"splits {dict(Counter(splits))}, kinds {dict(Counter(store['kind'].asstr()[:]))}")
        frame_of = np.repeat(np.arange(len(sizes)), sizes)
        pairs = np.unique(np.stack([numbers, frame_of], axis=1), axis=0)[:, 0]
        counts = {chemical_symbols[z]: int(n) for z, n in sorted(Counter(pairs).items())}
        print(f"frames with each of {len(counts)} elements: {counts}")
        force = np.linalg.norm(store["forces"][:], axis=1)
        pressure = np.trace(store["stress"][:], axis1=1, axis2=2) / 3
        for name, values in (
            ("energy per atom (eV)", store["energy"][:] / sizes),
            ("force norm (eV/Å)", force),
            ("mean stress (eV/Å^3)", pressure),
            ("neighbours per atom at 5 Å", neighbours_per_atom(store, 5.0, 10)),
            ("neighbours per atom at 6 Å", neighbours_per_atom(store, 6.0, 10)),
        ):
            low, median, high = np.quantile(values, [0.01, 0.5, 0.99])
            print(
                f"{name}: min {values.min():.3f}, 1 % {low:.3f}, median {median:.3f}, "
                f"99 % {high:.3f}, max {values.max():.3f}, mean {values.mean():.3f}"
            )


def label_all(
    calculator: CHGNetCalculator, compounds: list[Compound], folder: Path, seed: int
) -> None:
    """Write the chunks of all compounds that are in none yet, one progress line (stderr) each."""
    chunks = sorted(folder.glob("chunk_????.npz"))
    known = {label for path in chunks for label in np.load(path)["label_of_origin"]}
    pending = [compound for compound in compounds if compound.label not in known]
    first = int(chunks[-1].stem.removeprefix("chunk_")) + 1 if chunks else 0
    began, frames = time.monotonic(), 0
    for number, start in enumerate(range(0, len(pending), CHUNK), start=first):
        part = pending[start : start + CHUNK]
        frames += write_chunk(folder / f"chunk_{number:04d}.npz", calculator, part, seed)
        print(
            f"{start + len(part)}/{len(pending)} compounds, "
            f"{frames} frames in {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def main() -> None:
    """Label every chunk that is not on disk yet, then merge and print the statistics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=10_000, help="compounds at most")
    parser.add_argument("--merge-only", action="store_true")
    arguments = parser.parse_args()
    (arguments.directory / "chunks").mkdir(parents=True, exist_ok=True)
    if not arguments.merge_only:
        torch.set_num_threads(1)
        warnings.filterwarnings("ignore")
        model = CHGNet.load(use_device="cpu", verbose=False)
        calculator = CHGNetCalculator(model, use_device="cpu", on_isolated_atoms="error")
        compounds = seed_compounds(arguments.seed)[: arguments.limit]
        label_all(calculator, compounds, arguments.directory / "chunks", arguments.seed)
    print_statistics(merge(arguments.directory))


if __name__ == "__main__":
    main()
