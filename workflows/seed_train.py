"""Train the seed model on CHGNet labels with a plain loop: AdamW, a warm-up, a cosine, and EMA.

    python workflows/seed_train.py seed.h5 --out seed.safetensors --minutes 60

Reads the file that workflows/seed_labels.py writes.  Forces come from the energy, so each step is
a double backward.  Every few seconds a line; every epoch a row of train.csv beside the output.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from seed_data import elements_of, seed_compounds

from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges, neighbors
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential, load

Tensor = torch.Tensor


@dataclass
class Frames:
    """Labelled frames with their neighbour lists, ready to be packed."""

    batches: list[Batch]
    edges: list[Edges]
    energy: np.ndarray
    forces: list[Tensor]
    stress: Tensor

    def __len__(self) -> int:
        return len(self.batches)


def read(path: Path, split: str, cutoff: float, limit: int | None) -> Frames:
    """One split of the labelled set; energies in eV, forces in eV/Å, stress in eV/Å^3."""
    with h5py.File(path) as file:
        chosen = np.flatnonzero(file["split"].asstr()[:] == split)[:limit]
        offsets, positions = file["offsets"][:], file["positions"][:]
        numbers, forces = file["atomic_numbers"][:], file["forces"][:]
        cells, energy, stress = file["cell"][:], file["energy"][:], file["stress"][:]
    batches, edges, force_list = [], [], []
    for frame in chosen:
        rows = slice(offsets[frame], offsets[frame + 1])
        batch = Batch.single(
            torch.tensor(positions[rows]),
            torch.tensor(numbers[rows].astype(np.int64)),
            torch.tensor(cells[frame]),
            True,
        )
        found = neighbors(batch, cutoff)
        small = Edges(found.center, found.neighbor, found.vector.float(), found.row_ptr)
        batches.append(batch)
        edges.append(small)
        force_list.append(torch.tensor(forces[rows], dtype=torch.float32))
    stresses = torch.tensor(stress[chosen], dtype=torch.float32)
    return Frames(batches, edges, energy[chosen], force_list, stresses)


def energy_shifts(frames: Frames, config: DPA4Config) -> tuple[np.ndarray, float]:
    """Energy per element by ridge least squares, and the spread of what is left per atom (eV)."""
    column = {number: i for i, number in enumerate(config.atomic_numbers)}
    counts = np.zeros((len(frames), len(column)))
    for row, batch in enumerate(frames.batches):
        for number in batch.atomic_numbers.tolist():
            counts[row, column[number]] += 1
    size = counts.sum(1)
    a, b = counts / size[:, None], frames.energy / size
    shift = np.linalg.solve(a.T @ a + 1e-4 * np.eye(a.shape[1]), a.T @ b)
    return shift, float(np.std(b - a @ shift))


def pack(frames: Frames, chosen: np.ndarray, species_of: Tensor) -> tuple[Tensor, ...]:
    """Concatenate frames: species, system, center, neighbor, vector, and the labels."""
    species, system, center, neighbor, vector, forces, volume = [], [], [], [], [], [], []
    start = 0
    for s, index in enumerate(chosen):
        batch, edges = frames.batches[index], frames.edges[index]
        n = len(batch.positions)
        species.append(species_of[batch.atomic_numbers])
        system.append(torch.full((n,), s))
        center.append(edges.center + start)
        neighbor.append(edges.neighbor + start)
        vector.append(edges.vector)
        forces.append(frames.forces[index])
        volume.append(batch.volume)
        start += n
    parts = (species, system, center, neighbor, vector, forces, volume)
    return tuple(torch.cat(part) for part in parts)


def losses(
    model: DPA4, frames: Frames, chosen: np.ndarray, species_of: Tensor, train: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Objective and error sums of a batch of frames."""
    species, system, center, neighbor, vector, forces, volume = pack(frames, chosen, species_of)
    vector.requires_grad_(True)
    counts = torch.bincount(center, minlength=len(species))
    row_ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    edges = Edges(center, neighbor, vector, row_ptr)
    atomic, _ = model(species, edges)
    (gradient,) = torch.autograd.grad(atomic.sum(), vector, create_graph=train)
    predicted = gradient.new_zeros(len(species), 3)
    predicted = predicted.index_add(0, center, gradient)
    predicted = predicted.index_add(0, neighbor, gradient, alpha=-1)
    n = len(chosen)
    size = torch.bincount(system, minlength=n)
    energy = atomic.new_zeros(n).index_add(0, system, atomic)
    pair = gradient[:, :, None] * vector[:, None]
    virial = pair.new_zeros(n, 3, 3).index_add(0, system[center], pair)
    label = torch.tensor(frames.energy[chosen])
    d_energy = ((energy - label) / size).float()
    d_force = torch.linalg.vector_norm(predicted - forces + 1e-12, dim=1)
    d_stress = virial / volume.float()[:, None, None] - frames.stress[chosen]
    objective = 20 * d_energy.abs().mean() + 20 * d_force.mean() + 100 * d_stress.abs().mean()
    sums = {
        "energy": d_energy.detach().abs().sum(),
        "force": (predicted - forces).detach().abs().mean(1).sum(),
        "stress": d_stress.detach().abs().mean((1, 2)).sum(),
        "frames": torch.tensor(float(n)),
        "atoms": torch.tensor(float(len(species))),
    }
    return objective, sums


def batches_of(frames: Frames, order: np.ndarray, edge_budget: int) -> list[np.ndarray]:
    """Cut an order into batches of at most `edge_budget` edges."""
    groups, current, used = [], [], 0
    for index in order:
        count = frames.edges[index].n_edges
        if current and used + count > edge_budget:
            groups.append(np.array(current))
            current, used = [], 0
        current.append(index)
        used += count
    groups.append(np.array(current))
    return groups


def errors(model: DPA4, frames: Frames, species_of: Tensor) -> dict[str, float]:
    """Mean absolute errors: meV/atom, meV/Å per component, meV/Å^3 per component."""
    total: dict[str, float] = {}
    for group in batches_of(frames, np.arange(len(frames)), 40_000):
        _, sums = losses(model, frames, group, species_of, train=False)
        for key, value in sums.items():
            total[key] = total.get(key, 0.0) + float(value)
    return {
        "energy_meV_per_atom": 1e3 * total["energy"] / total["frames"],
        "force_meV_per_A": 1e3 * total["force"] / total["atoms"],
        "stress_meV_per_A3": 1e3 * total["stress"] / total["frames"],
    }


def parameter_groups(model: DPA4, decay: float) -> list[dict[str, object]]:
    """Weight decay on matrices only."""
    tables = ("species_table", "basis", "scale", "norm", "null_logit", "bias", "strength")
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        flat = parameter.squeeze().ndim < 2 or any(word in name for word in tables)
        (plain if flat else decayed).append(parameter)
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": decay}]


def main() -> None:
    """Train, keep the averaged weights with the best validation loss, write the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("seed.safetensors"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--edges", type=int, default=6000, help="edges in a batch")
    parser.add_argument("--limit", type=int, default=None, help="frames to use of each split")
    parser.add_argument("--start", type=Path, default=None, help="model file to go on from")
    parser.add_argument("--keep-rate", action="store_true", help="no cosine: a first stage")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    species = tuple(elements_of(seed_compounds(0)))
    size = {"n_blocks": 2, "max_degree": 2, "so2_layers": 2, "n_radial": 10}
    config = DPA4Config(species=species, cutoff=args.cutoff, channels=args.channels, **size)
    model = DPA4(config)
    if args.start is not None:
        model = load(args.start).model.requires_grad_(True).train()
        config, species = model.config, model.config.species
    train = read(args.data, "train", args.cutoff, args.limit)
    valid = read(args.data, "valid", args.cutoff, args.limit)
    shift, spread = energy_shifts(train, config)
    if args.start is None:
        model.energy_shift.copy_(torch.tensor(shift))
    species_of = torch.full((120,), -1)
    species_of[list(config.atomic_numbers)] = torch.arange(len(species))
    n_weights = sum(p.numel() for p in model.parameters())
    print(
        f"{len(train)} training and {len(valid)} validation frames, {n_weights} weights, "
        f"spread after shifts {spread:.3f} eV/atom",
        file=sys.stderr,
    )
    run(model, train, valid, species_of, rng, args)


def run(
    model: DPA4,
    train: Frames,
    valid: Frames,
    species_of: Tensor,
    rng: np.random.Generator,
    args: argparse.Namespace,
) -> None:
    """The loop; the schedule follows the clock, so that it ends when the time does."""
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3), lr=args.lr, betas=(0.9, 0.98))
    averaged = copy.deepcopy(model).requires_grad_(False)
    start = last_line = time.time()
    limit, step, epoch, best = 60 * args.minutes, 0, 0, math.inf
    rows: list[dict[str, float]] = []
    while time.time() - start < limit:
        for group in batches_of(train, rng.permutation(len(train)), args.edges):
            share = min(1.0, (time.time() - start) / limit)
            warm = min(1.0, (step + 1) / 200)
            fall = 1.0 if args.keep_rate else 0.01 + 0.495 * (1 + math.cos(math.pi * share))
            rate = args.lr * warm * fall
            for entry in optimizer.param_groups:
                entry["lr"] = rate
            objective, sums = losses(model, train, group, species_of, train=True)
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            if torch.isfinite(norm):
                optimizer.step()
            keep = min(0.999, (step + 1) / (step + 10))
            with torch.no_grad():
                for mean, new in zip(averaged.parameters(), model.parameters(), strict=True):
                    mean.lerp_(new, 1 - keep)
            step += 1
            if time.time() - last_line > 10:
                last_line = time.time()
                e = 1e3 * float(sums["energy"] / sums["frames"])
                f = 1e3 * float(sums["force"] / sums["atoms"])
                print(
                    f"step {step} epoch {epoch} E {e:.1f} meV/atom F {f:.1f} meV/Å lr {rate:.1e} "
                    f"{step / (time.time() - start):.2f} steps/s",
                    file=sys.stderr,
                    flush=True,
                )
            if time.time() - start > limit:
                break
        epoch += 1
        row = errors(averaged, valid, species_of)
        rows.append({"epoch": epoch, "step": step, "seconds": time.time() - start, **row})
        print("valid", {k: round(v, 2) for k, v in row.items()}, file=sys.stderr, flush=True)
        score = row["energy_meV_per_atom"] + row["force_meV_per_A"]
        if score < best:
            best = score
            save(averaged, args.out, rows[-1], len(train), args)
    with args.out.with_suffix(".train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def save(
    model: DPA4, out: Path, record: dict[str, float], n_frames: int, args: argparse.Namespace
) -> None:
    """Write the averaged weights with their origin."""
    card = {
        "labels": "CHGNet 0.4.2 (energies, forces, stresses of a model, not DFT)",
        "training_frames": n_frames,
        "validation": record,
        "arguments": {k: v for k, v in vars(args).items() if not isinstance(v, Path)},
        "licence": "Apache-2.0; labels from CHGNet (BSD-3-Clause)",
    }
    Potential(copy.deepcopy(model), card=card).save(out)


if __name__ == "__main__":
    main()
