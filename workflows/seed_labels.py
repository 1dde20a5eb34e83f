"""Label the training structures with CHGNet.

    python workflows/seed_labels.py LABELS [--worker 0 --workers 2] [--limit N] [--seed 0]
    dpa4sim data convert LABELS/*/train.extxyz -o workflows/train/universal_train.h5
    dpa4sim data convert LABELS/*/valid.extxyz -o workflows/train/universal_valid.h5
    dpa4sim data convert LABELS/*/test.extxyz -o workflows/train/universal_test.h5

The first command runs in an environment that has chgnet (0.4.2, weights inside the package), once
per processor core with another --worker.  The labels are CHGNet labels, not DFT.  Compounds are
worked off in chunks of `CHUNK`: volume scan, short relaxation, perturbed frames, for some a short
dynamics.  What the scan and the relaxation ask of CHGNet is kept as well.  A chunk is a folder that
appears when it is complete; running the command again goes on with those that are missing.
"""

import argparse
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa, fs
from pymatgen.io.ase import AseAtomsAdaptor
from seed_data import Compound, seed_compounds
from seed_frames import (
    LARGE,
    MIN_CONTACT,
    marked,
    perturbed_frames,
    random_supercell,
    scale_volume,
    shortest_contact,
    stretched_frames,
    thermal,
)
from tqdm import tqdm

CHUNK = 20  # compounds in a folder
MIN_VOLUME = 2.0  # Å^3 per atom, and
MIN_HEIGHT = 1.0  # Å of a cell: the graph of a collapsed one costs gigabytes and teaches nothing
MAX_ANGLES = 60_000  # of a frame, for the same reason
BATCH = 8  # structures per CHGNet call, the fastest on one CPU core
MAX_FORCE = 30.0  # eV/Å
MAX_STRESS = 0.6  # eV/Å^3, some 100 GPa: beyond, CHGNet has seen nothing either
SCAN = np.geomspace(0.7, 1.6, 5)  # volume factors about the cell that radii suggest
WIDE_SCAN = np.geomspace(0.6, 1.8, 9)  # of elements, whose softest double their volume
MORE = 1.23 ** np.arange(1, 4)  # beyond either end, where the lowest energy lies there
KEPT = 4  # points of a scan that are kept, of a compound; all of an element
RELAX_STEPS = 8
RELAX_FMAX = 0.05  # eV/Å
DYNAMICS_SHARE = 0.25  # of the compounds
DYNAMICS_STEPS = 12  # of 3 fs; a frame is kept of each half
TIME_STEP = 3 * fs

type Teacher = Callable[[list[Atoms]], list[Atoms | None]]
"""Structures -> the same with energy (eV), forces, stress; None where there is no answer."""


def chgnet_teacher() -> Teacher:
    """CHGNet on one processor core."""
    import torch
    from chgnet.model import CHGNet

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    model = CHGNet.load(use_device="cpu", verbose=False)

    def teach(frames: list[Atoms]) -> list[Atoms | None]:
        graphs = {}
        for index in sorted(range(len(frames)), key=lambda index: len(frames[index])):
            if collapsed(frames[index]):
                continue
            try:
                graph = model.graph_converter(AseAtomsAdaptor.get_structure(frames[index]))
            except (ValueError, RuntimeError):  # an atom without neighbours, or with too many
                continue
            if len(graph.bond_graph) <= MAX_ANGLES:
                graphs[index] = graph
        listed = list(graphs.values())
        answers = model.predict_graph(listed, task="efs", batch_size=BATCH) if listed else []
        by_index = dict(zip(graphs, [answers] if len(listed) == 1 else answers, strict=True))
        return [
            labelled(frame, by_index[index]) if index in by_index else None
            for index, frame in enumerate(frames)
        ]

    return teach


def collapsed(atoms: Atoms) -> bool:
    """Whether the cell is too small or too flat for any crystal."""
    area = atoms.get_volume() * np.linalg.norm(atoms.cell.reciprocal(), axis=1).max()
    return atoms.get_volume() < MIN_VOLUME * len(atoms) or atoms.get_volume() < MIN_HEIGHT * area


def labelled(atoms: Atoms, answer: dict[str, np.ndarray]) -> Atoms | None:
    """A frame with CHGNet's answer in eV and Å, stress positive under tension; None if not finite.

    Args:
        answer: e in eV/atom, f in eV/Å, s in GPa.
    """
    result = atoms.copy()
    forces = answer["f"].astype(float)
    stress = full_3x3_to_voigt_6_stress(answer["s"].astype(float)) * GPa
    if not (np.isfinite(forces).all() and np.isfinite(stress).all()):
        return None
    energy = float(answer["e"]) * len(atoms)
    result.calc = SinglePointCalculator(result, energy=energy, forces=forces, stress=stress)
    return result


def scan_volumes(
    teach: Teacher, compounds: list[Compound]
) -> tuple[list[Atoms | None], list[list[Atoms]]]:
    """Each compound's cell of lowest energy, None without a minimum; and all frames on the way.

    The scan goes on beyond that end where the energy is lowest, once.
    """
    points: list[dict[float, Atoms]] = [{} for _ in compounds]
    wanted = [WIDE_SCAN if is_element(compound.atoms) else SCAN for compound in compounds]
    for _ in range(2):
        asked = [
            (index, factor, marked(scale_volume(compounds[index].atoms, factor), "volume"))
            for index, factors in enumerate(wanted)
            for factor in factors
        ]
        answers = teach([frame for _, _, frame in asked])
        for (index, factor, _), answer in zip(asked, answers, strict=True):
            if answer is not None:
                points[index][factor] = answer
        wanted = [beyond(found) for found in points]
    cells = [
        None if factor is None else scale_volume(compound.atoms, factor)
        for factor, compound in zip(map(lowest_volume, points), compounds, strict=True)
    ]
    return cells, [list(found.values()) for found in points]


def is_element(atoms: Atoms) -> bool:
    """Whether all atoms are alike."""
    return len(set(atoms.numbers)) == 1


def beyond(points: dict[float, Atoms]) -> np.ndarray:
    """Volume factors beyond the end of a scan where its energy is lowest; none elsewhere."""
    if not points:
        return np.array([])
    best = min(points, key=lambda factor: points[factor].get_potential_energy())
    if best == max(points):
        return best * MORE
    return best / MORE if best == min(points) else np.array([])


def lowest_volume(points: dict[float, Atoms]) -> float | None:
    """Volume factor of lowest energy, by a parabola in its logarithm; None at an end."""
    factors = np.array(sorted(points))
    energy = np.array([points[factor].get_potential_energy() for factor in factors])
    if len(factors) < 3 or energy.argmin() in (0, len(factors) - 1):
        return None
    near = slice(energy.argmin() - 1, energy.argmin() + 2)
    curve = np.polyfit(np.log(factors[near]), energy[near], 2)
    return float(np.exp(-curve[1] / (2 * curve[0])))


def relax_together(
    teach: Teacher, starts: list[Atoms], steps: int = RELAX_STEPS, fmax: float = RELAX_FMAX
) -> list[list[Atoms]]:
    """Paths of cells and positions under BFGS, every step of all structures in one call.

    Args:
        fmax: largest force, and largest cell gradient per atom (eV/Å), at which one ends early.

    Returns:
        For each structure its labelled frames, first to last; none after one without an answer.
    """
    moving = [atoms.copy() for atoms in starts]
    filters = [FrechetCellFilter(atoms) for atoms in moving]
    optimizers = [BFGS(each, logfile=None, maxstep=0.15) for each in filters]
    paths: list[list[Atoms]] = [[] for _ in starts]
    active = list(range(len(starts)))
    for _ in range(steps + 1):
        answers = teach([moving[index] for index in active])
        going = []
        for index, answer in zip(active, answers, strict=True):
            if answer is None:
                continue
            paths[index].append(answer)
            moving[index].calc = SinglePointCalculator(moving[index], **answer.calc.results)
            if np.linalg.norm(filters[index].get_forces(), axis=1).max() < fmax:
                continue
            try:
                optimizers[index].step()
            except (ValueError, np.linalg.LinAlgError):  # a cell that fell into a plane
                continue
            going.append(index)
        active = going
    return paths


def kept_path(path: list[Atoms]) -> tuple[Atoms | None, list[Atoms]]:
    """The lowest frame of a path, and what is kept of it: that one, the first, one between."""
    sane = [frame for frame in path if shortest_contact(frame) > MIN_CONTACT]
    if not sane:
        return None, []
    order = np.argsort([frame.get_potential_energy() for frame in sane])
    relaxed = marked(sane[order[0]], "relaxed")
    others = [index for index in {0, len(sane) // 2} if index != order[0]]
    return relaxed, [relaxed, *(marked(sane[index], "path") for index in others)]


def move_together(
    teach: Teacher, starts: list[Atoms], temperatures: list[float], rng: np.random.Generator
) -> list[list[Atoms]]:
    """Short dynamics (velocity Verlet) of all structures, every step in one call.

    Args:
        starts: harmonic snapshots, so that kinetic and potential energy begin in balance.
        temperatures: K.

    Returns:
        For each structure its labelled frames at half time and at the end.
    """
    moving = [atoms.copy() for atoms in starts]
    for atoms, temperature in zip(moving, temperatures, strict=True):
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    frames: list[list[Atoms]] = [[] for _ in starts]
    forces = {
        index: answer.get_forces()
        for index, answer in enumerate(teach(moving))
        if answer is not None
    }
    for step in range(1, DYNAMICS_STEPS + 1):
        for index in forces:
            atoms = moving[index]
            atoms.set_momenta(atoms.get_momenta() + 0.5 * TIME_STEP * forces[index])
            atoms.positions += TIME_STEP * atoms.get_velocities()
        answers = zip(list(forces), teach([moving[index] for index in forces]), strict=True)
        for index, answer in answers:
            if answer is None:
                del forces[index]
                continue
            atoms, forces[index] = moving[index], answer.get_forces()
            atoms.set_momenta(atoms.get_momenta() + 0.5 * TIME_STEP * forces[index])
            if step % (DYNAMICS_STEPS // 2) == 0:
                del answer.arrays["momenta"]
                frames[index].append(marked(answer, "dynamics"))
    return frames


def chunk_frames(
    teach: Teacher, compounds: list[Compound], seed: int
) -> list[tuple[Compound, list[Atoms]]]:
    """The labelled frames of some compounds."""
    generators = [np.random.default_rng([seed, *each.label.encode()]) for each in compounds]
    cells, scans = scan_volumes(teach, compounds)
    collected = [some_of(scan, rng) for scan, rng in zip(scans, generators, strict=True)]
    found = {index: cell for index, cell in enumerate(cells) if cell is not None}
    asked: list[tuple[int, Atoms]] = []
    hot: dict[int, tuple[Atoms, float]] = {}
    for index, path in zip(found, relax_together(teach, list(found.values())), strict=True):
        relaxed, kept = kept_path(path)
        collected[index] += kept
        if relaxed is None:
            continue
        rng = generators[index]
        asked += [(index, frame) for frame in perturbed_frames(relaxed, rng)]
        if is_element(relaxed):
            asked += [(index, frame) for frame in stretched_frames(relaxed, rng)]
        if rng.random() < DYNAMICS_SHARE and len(relaxed) < LARGE:
            kelvin = rng.uniform(300, 1500)
            hot[index] = thermal(random_supercell(relaxed, rng, 8), rng, kelvin), kelvin
    for (index, _), answer in zip(asked, teach([frame for _, frame in asked]), strict=True):
        collected[index] += [answer] if answer is not None else []
    if hot:
        starts, kelvins = map(list, zip(*hot.values(), strict=True))
        moved = move_together(teach, starts, kelvins, generators[next(iter(hot))])
        for index, frames in zip(hot, moved, strict=True):
            collected[index] += frames
    return [(c, list(acceptable(kept))) for c, kept in zip(compounds, collected, strict=True)]


def some_of(scan: list[Atoms], rng: np.random.Generator) -> list[Atoms]:
    """The points of a scan that are kept: all of an element, whose volume is hard to learn."""
    if len(scan) <= KEPT or is_element(scan[0]):
        return scan
    return [scan[index] for index in sorted(rng.choice(len(scan), KEPT, replace=False))]


def acceptable(frames: Iterable[Atoms]) -> Iterable[Atoms]:
    """Those with contacts, forces and stresses that a training set should have."""
    for frame in frames:
        force = np.linalg.norm(frame.get_forces(), axis=1).max()
        stress = np.abs(frame.get_stress()).max()
        if force < MAX_FORCE and stress < MAX_STRESS and shortest_contact(frame) > MIN_CONTACT:
            yield frame


def write_chunk(folder: Path, labels: list[tuple[Compound, list[Atoms]]]) -> int:
    """One extxyz file per split; the folder appears complete or not at all.

    Returns:
        How many frames there are.
    """
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        frames = [frame for compound, kept in labels for frame in kept if compound.split == split]
        if frames:
            write(partial / f"{split}.extxyz", frames, format="extxyz")
    partial.rename(folder)
    return sum(len(kept) for _, kept in labels)


def label_all(
    teach: Teacher,
    compounds: list[Compound],
    folder: Path,
    *,
    seed: int,
    worker: int = 0,
    workers: int = 1,
) -> int:
    """Write this worker's chunks that are not there yet; the number of new frames."""
    starts = range(worker * CHUNK, len(compounds), workers * CHUNK)
    frames = 0
    with tqdm(starts, unit="chunk") as bar:
        for start in bar:
            path = folder / f"{start // CHUNK:04d}"
            if not path.exists():
                part = compounds[start : start + CHUNK]
                frames += write_chunk(path, chunk_frames(teach, part, seed))
            bar.set_postfix(frames=frames)
    return frames


def main() -> None:
    """Label every chunk that is not on disk yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the labels go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=10_000, help="compounds at most")
    parser.add_argument("--worker", type=int, default=0, help="number of this process")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    args = parser.parse_args()
    if not 0 <= args.worker < args.workers:
        parser.error(f"--worker {args.worker} is none of --workers {args.workers}; count from 0")
    compounds = seed_compounds(args.seed)[: args.limit]
    teach = chgnet_teacher()
    share = {"seed": args.seed, "worker": args.worker, "workers": args.workers}
    frames = label_all(teach, compounds, args.folder, **share)
    print(f"{frames} new frames in {args.folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
