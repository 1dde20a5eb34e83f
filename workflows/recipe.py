"""What the recipes ask for in the same words: crystals, a model, a folder for what they write."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import spglib
from ase import Atoms
from jaxtyping import Float

import dpa4sim
from dpa4sim.adapters.ase import from_atoms, to_atoms
from dpa4sim.adapters.files import read_structures
from dpa4sim.batch import Batch, symbol
from dpa4sim.cli.options import open_model
from dpa4sim.complaint import complaint
from dpa4sim.direct import is_conservative
from dpa4sim.errors import ConfigError, DataError, Dpa4simError, Status
from dpa4sim.plots import FAINT, GRID, INK
from dpa4sim.potential import EnergyModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CRYSTALS = Path(dpa4sim.__file__).parent / "crystals" / "experimental.extxyz"

VACUUM_A = 6.0
"""A wider layer without atoms separates slabs; layers of a crystal are 2 to 4 Å apart."""

SYMMETRY_PRECISION_A = 1e-3
"""Atoms that a symmetry maps so close to each other are equivalent."""

TRAJECTORY = "trajectory.h5"
"""What recipes of dynamics write into their folder."""

NOT_ALL = 3
"""Exit code: finished, but some crystals have no result."""


@dataclass(frozen=True)
class Crystal:
    """A crystal and what tables call it."""

    name: str
    atoms: Atoms


def add_arguments(parser: argparse.ArgumentParser, crystals: str, out: str, dtype: str) -> None:
    """INPUT, --model, --branch, --device, --dtype and --out, with the recipe's defaults."""
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="*",
        default=crystals.split(),
        help=f"structure files, or names or formulas of built-in crystals [{crystals}]",
    )
    parser.add_argument("--model", default="seed", help="a released name or a file [seed]")
    parser.add_argument("--branch", help="branch of a multi-task DeePMD-kit checkpoint")
    parser.add_argument("--device", default="cpu", help="where to compute, such as cuda [cpu]")
    parser.add_argument("--dtype", default=dtype, choices=("float32", "float64"), help=f"[{dtype}]")
    parser.add_argument("-o", "--out", type=Path, default=Path(out), help=f"a folder [{out}]")


def add_trajectory(
    parser: argparse.ArgumentParser,
    *,
    temperatures: Sequence[float],
    replicas: int,
    atoms: int,
    time: float,
    skip: float,
    timestep: float,
) -> None:
    """What recipes of dynamics ask for besides, with the recipe's defaults."""
    kelvins = " ".join(f"{kelvin:g}" for kelvin in temperatures)
    for name, kind, default, text in (
        ("replicas", int, replicas, "trajectories of each crystal at each temperature"),
        ("atoms", int, atoms, "fewest in a supercell"),
        ("time", float, time, "length, ps"),
        ("skip", float, skip, "what is left out at the start, ps"),
        ("timestep", float, timestep, "fs; 1 or less with hydrogen"),
        ("seed", int, 0, "of velocities and noise"),
        ("fmax", float, 0.01, "of the relaxation at the start, eV/Å"),
    ):
        parser.add_argument(f"--{name}", type=kind, default=default, help=f"{text} [{default:g}]")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=list(temperatures), help=f"K [{kelvins}]"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the trajectory.h5 of an interrupted run"
    )


def begin(args: argparse.Namespace) -> tuple[EnergyModel, list[Crystal]]:
    """The model and the crystals that `add_arguments` asked for, checked, and the folder made.

    Raises:
        ConfigError: the device is not there, the folder cannot be made, or it holds a trajectory
            that is not to be continued.
        DataError: a crystal is not known or cannot be used.
        ModelError: the model cannot be used.
    """
    if (args.out / TRAJECTORY).exists() and not getattr(args, "resume", False):
        raise ConfigError(
            f"{args.out / TRAJECTORY} exists. Give another folder, or --resume to go on with it."
        )
    crystals = find(args.inputs)
    potential = open_model(args)
    check(crystals, potential)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {args.out} cannot be made: {error}.") from error
    return potential, crystals


def find(words: Sequence[str]) -> list[Crystal]:
    """The crystals of files and those that are built in, in the order of the words.

    Raises:
        DataError: a word is neither a file nor a known crystal, or a structure cannot be read.
    """
    found = [crystal for word in words for crystal in (_of_file(word) or [_built_in(word)])]
    names = [crystal.name for crystal in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{twice[0]} is given twice. Give every crystal once.")
    return found


def check(crystals: Sequence[Crystal], potential: EnergyModel) -> None:
    """Is each a crystal, of elements that the model knows?

    Raises:
        DataError: one is not; the message says which and why.
    """
    known: frozenset[int] | None = getattr(potential, "known_elements", None)
    for name, atoms in ((crystal.name, crystal.atoms) for crystal in crystals):
        reason = complaint(from_atoms(atoms), known)
        if reason is not None:
            raise DataError(f"{name} cannot be used: {reason}.{_elements(reason, known)}")
        if not atoms.pbc.all():
            raise DataError(
                f"{name} is no crystal: it is periodic along {atoms.pbc.sum()} of 3 lattice "
                "vectors. Give a structure that is periodic along all of them."
            )
        gap = widest_gap(atoms)
        if gap > VACUUM_A:
            raise DataError(
                f"{name} is no crystal: a layer of {gap:.1f} Å holds no atom, as in the cell of a "
                "slab. Its volume means nothing; give the bulk."
            )


def widest_gap(atoms: Atoms) -> float:
    """Thickness in Å of the widest layer without atoms between two lattice planes."""
    fractions = np.sort(atoms.get_scaled_positions(), axis=0)
    steps = np.diff(fractions, axis=0, append=fractions[:1] + 1)
    heights = 1 / np.linalg.norm(atoms.cell.reciprocal(), axis=1)
    return float((steps.max(0) * heights).max())


def primitive(crystal: Crystal) -> Crystal:
    """The smallest cell of a crystal, in the same orientation.

    One with a total charge or spin stays as it is, for these belong to the cell that was given.
    """
    atoms = crystal.atoms
    if "charge" in atoms.info or "spin" in atoms.info:
        return crystal
    cell = atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers
    smallest = spglib.standardize_cell(
        cell, to_primitive=True, no_idealize=True, symprec=SYMMETRY_PRECISION_A
    )
    if smallest is None or len(smallest[2]) >= len(atoms):
        return crystal
    lattice, fractions, numbers = smallest
    return Crystal(crystal.name, Atoms(numbers, cell=lattice, scaled_positions=fractions, pbc=True))


def supercell(crystal: Crystal, n_atoms: int) -> Crystal:
    """As many cells as hold `n_atoms` atoms or more, the block about as wide as high.

    Raises:
        DataError: the cell has a total charge or spin, of which nobody knows the multiple.
    """
    atoms = crystal.atoms
    repeats, lengths = np.ones(3, int), atoms.cell.lengths()
    while len(atoms) * repeats.prod() < n_atoms:
        repeats[np.argmin(repeats * lengths)] += 1
    if repeats.prod() > 1 and ("charge" in atoms.info or "spin" in atoms.info):
        raise DataError(
            f"{crystal.name} has a charge or spin of its own and cannot be repeated to {n_atoms} "
            "atoms. Give the repeated cell with the charge and spin of the whole."
        )
    return Crystal(crystal.name, atoms.repeat(tuple(int(n) for n in repeats)))


def relaxed(
    potential: EnergyModel, crystals: Sequence[Crystal], fmax: float
) -> tuple[list[Crystal], list[str]]:
    """Relax atoms and cells, all in one call.

    Returns:
        The crystals that converged, and a sentence about each of the others.
    """
    atoms = [crystal.atoms for crystal in crystals]
    result = dpa4sim.relax(potential, atoms, fmax=fmax, cell=True, progress=True)
    good, notes = [], []
    for i, crystal in enumerate(crystals):
        if result.status[i] == Status.CONVERGED:
            good.append(Crystal(crystal.name, to_atoms(result.batches[i])[0]))
        else:
            notes.append(f"{crystal.name} did not relax: {result.reasons[i]}.")
    return good, notes


def forces_of(
    potential: EnergyModel, cells: Sequence[Atoms], atoms_at_once: int
) -> list[Float[np.ndarray, "atom 3"]]:
    """Forces of unlike cells, eV/Å, as many in one evaluation as have so many atoms.

    Raises:
        ConfigError: the model predicts forces directly.
    """
    if not is_conservative(potential):
        raise ConfigError(
            "Force constants are second derivatives of an energy, and this model predicts forces "
            "directly. Take a conservative model."
        )
    found: list[np.ndarray] = []
    while len(found) < len(cells):
        sizes = accumulate(len(cell) for cell in cells[len(found) :])
        count = max(1, sum(size <= atoms_at_once for size in sizes))
        group = cells[len(found) : len(found) + count]
        batch = Batch.concatenate([from_atoms(cell) for cell in group])
        forces = potential(batch.to(potential.device)).forces.detach().cpu().double().numpy()
        found += np.split(forces, np.cumsum([len(cell) for cell in group])[:-1])
    return found


def finish(
    args: argparse.Namespace, name: str, found: Sequence[Any], text: str, notes: Sequence[str]
) -> int:
    """Print the table and what went wrong, write FOLDER/NAME.json.

    Args:
        found: a dataclass per crystal, with its `name` and `note`.
        text: the table.
        notes: about crystals of which nothing was found.

    Returns:
        The exit code.
    """
    notes = [*notes, *(f"{each.name}: {each.note}" for each in found if each.note)]
    print("\n".join([text, *notes]))
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    crystals = [asdict(each) for each in found]
    content = {"settings": settings, "crystals": crystals, "notes": notes}
    write_json(args.out / f"{name}.json", content)
    print(f"{args.out / name}.json and .png are written.")
    return NOT_ALL if notes else 0


def open_frame(axes: Axes) -> None:
    """A faint grid, no frame above and to the right."""
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK)


def check_temperatures(temperatures: Sequence[float]) -> None:
    """Is there one, and each once?

    Raises:
        ConfigError: it is not so.
    """
    if not temperatures or len(set(temperatures)) < len(temperatures):
        raise ConfigError(f"temperatures={list(temperatures)}. Give some, each once.")


def write_json(path: Path, content: Any) -> None:
    """Numbers without end become null, for JSON has no word for them."""
    path.write_text(json.dumps(_plain(content), indent=1) + "\n", encoding="utf-8")


def leave(main: Callable[[], int]) -> None:
    """Run a recipe and exit; an error of ours is one line."""
    try:
        sys.exit(main())
    except Dpa4simError as error:
        sys.exit(f"error: {error}")


def _of_file(word: str) -> list[Crystal]:
    """The structures of a file, a folder or a glob; none if the word is not a path."""
    if not (Path(word).exists() or Path(word).suffix or "*" in word or "/" in word):
        return []
    found = []
    for record in read_structures(word):
        if isinstance(record.batch, DataError):
            raise record.batch
        atoms = record.atoms if record.atoms is not None else to_atoms(record.batch)[0]
        name = str(atoms.info.get("name", Path(record.label).name.removesuffix("#0")))
        found.append(Crystal(name, atoms))
    return found


def _built_in(word: str) -> Crystal:
    """The crystal inside the package with this name or formula."""
    every = [record.atoms for record in read_structures(CRYSTALS)]
    named = [atoms for atoms in every if atoms.info["name"].lower() == word.lower()]
    found = named or [atoms for atoms in every if atoms.info["formula"] == word]
    if len(found) == 1:
        return Crystal(found[0].info["name"], found[0])
    if found:
        names = ", ".join(atoms.info["name"] for atoms in found)
        raise DataError(f"There are {len(found)} crystals of {word}: {names}. Give one of these.")
    keys = {key: key for atoms in every for key in (atoms.info["name"], atoms.info["formula"])}
    lower = {key.lower(): key for key in keys}
    close = [lower[key] for key in get_close_matches(word.lower(), lower, n=3)]
    hint = f" Close to it: {', '.join(close)}." if close else ""
    raise DataError(
        f"There is no file and no built-in crystal '{word}'.{hint} Names are in {CRYSTALS.name}."
    )


def _elements(reason: str, known: frozenset[int] | None) -> str:
    if known is None or "does not know" not in reason:
        return ""
    return f" It knows {', '.join(symbol(z) for z in sorted(known))}."


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items()}
    if isinstance(content, np.ndarray):
        return _plain(content.tolist())
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, Path):
        return str(content)
    if isinstance(content, float | np.floating):
        return float(content) if math.isfinite(content) else None
    return content
