"""dpa4sim relax MODEL INPUT... -o OUT.extxyz: batched relaxation."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa4sim.cli.options import (
    add_allowance,
    add_model,
    add_speed,
    check_output,
    open_model,
    written_whole,
)
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import DataError, Status

if TYPE_CHECKING:
    from dpa4sim.batch import Batch
    from dpa4sim.relax import RelaxResult

HEADERS = (
    "structure",
    "formula",
    "atoms",
    "status",
    "steps",
    "fmax (eV/Å)",
    "energy (eV/atom)",
    "volume change (%)",
)
NOT_ALL = 3
"""Exit code: finished, but some systems did not converge."""

REFERENCE = "REF_"
"""Labels of the start geometry under such keys would be wrong for the relaxed one."""


@dataclass(frozen=True)
class Inputs:
    """What the files hold.

    Args:
        labels: path#index of each structure.
        names: what the table calls it: its own name, or the label without the folder.
        systems: one-system batches.
        templates: the structures as ASE read them, or None.
        unreadable: label and reason of what could not be read.
    """

    labels: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    systems: list[Batch] = field(default_factory=list)
    templates: list[Any] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, INPUT, OUT and the settings of `dpa4sim.relax`."""
    add_model(parser)
    add_speed(parser)
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="structure files, folders or globs"
    )
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="an .extxyz")
    parser.add_argument("--fmax", type=float, default=0.02, help="converged below, eV/Å [0.02]")
    parser.add_argument("--fixed-cell", action="store_true", help="move the atoms only")
    parser.add_argument("--max-steps", type=int, default=500, help="moves per structure [500]")
    parser.add_argument(
        "--optimizer", choices=("lbfgs", "fire"), help="fire: ASE's path [lbfgs; fire for moments]"
    )
    parser.add_argument(
        "--cell-filter", default="frechet", choices=("frechet", "unit"), help="of fire [frechet]"
    )
    _add_freedom(parser)
    parser.add_argument(
        "--directory",
        metavar="DIR",
        type=Path,
        help="keep checkpoints there; the same command goes on after any interruption",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first structure that goes wrong"
    )


def _add_freedom(parser: argparse.ArgumentParser) -> None:
    """What may move, and against which pressure."""
    parser.add_argument("--pressure-gpa", metavar="P", type=float, default=0.0, help="[0]")
    parser.add_argument(
        "--mask",
        metavar="FLAGS",
        type=_flags,
        help="strains xx, yy, zz, yz, xz, xy that may change, such as 1,1,0,0,0,1",
    )
    parser.add_argument("--hydrostatic", action="store_true", help="the cell keeps its shape")
    parser.add_argument("--constant-volume", action="store_true", help="it keeps its volume")
    parser.add_argument("--fix-symmetry", action="store_true", help="keep the space group")
    parser.add_argument("--moments", action="store_true", help="relax magnetic moments, too")
    parser.add_argument(
        "--magnetic-fmax",
        metavar="M",
        type=float,
        default=0.01,
        help="of moments: converged below, eV per Bohr magneton [0.01]",
    )
    parser.add_argument(
        "--max-force-spread",
        metavar="S",
        type=float,
        help="of an ensemble: a structure beyond ends as uncertain, eV/Å",
    )
    add_allowance(parser)


def _flags(text: str) -> list[bool]:
    if set(text) - set("01,"):
        raise argparse.ArgumentTypeError(f"{text!r}: give six flags, such as 1,1,0,0,0,1")
    return [flag == "1" for flag in text.split(",")]


def run(args: argparse.Namespace) -> int:
    """Relax everything in one call, write OUT, print the table."""
    check_output(args.out, (".extxyz", ".xyz"))
    inputs = read(args.inputs, args.strict)
    potential = open_model(args)
    from dpa4sim.relax.run import relax

    pairs = zip(inputs.templates, inputs.systems, strict=True)
    result = relax(
        potential,
        [system if atoms is None else atoms for atoms, system in pairs],
        fmax=args.fmax,
        cell=not args.fixed_cell,
        optimizer=args.optimizer,
        cell_filter=args.cell_filter,
        max_steps=args.max_steps,
        pressure_gpa=args.pressure_gpa,
        mask=args.mask,
        hydrostatic=args.hydrostatic,
        constant_volume=args.constant_volume,
        fix_symmetry=args.fix_symmetry,
        max_force_spread=args.max_force_spread,
        allow_non_conservative=args.allow_non_conservative,
        moments=args.moments,
        magnetic_fmax=args.magnetic_fmax,
        directory=args.directory,
        strict=args.strict,
        progress=True,
    )
    usable = [i for i, status in enumerate(result.status) if status != Status.INVALID]
    if not usable:
        raise DataError(f"{inputs.labels[0]} cannot be relaxed: {result.reasons[0]}.")
    write(args.out, result, inputs, usable)
    print(report(result, inputs))
    print(f"{summary(result, inputs)} {len(usable)} written to {args.out}.")
    all_good = result.status.count(Status.CONVERGED) == len(result) and not inputs.unreadable
    return 0 if all_good else NOT_ALL


def read(paths: Sequence[str], strict: bool) -> Inputs:
    """Every structure of every path.  One that cannot be read does not stop the others.

    Raises:
        DataError: a path is missing, nothing is readable, or `strict` and something is not.
    """
    from dpa4sim.adapters.files import read_structures

    inputs = Inputs()
    for record in read_structures(paths):
        if isinstance(record.batch, DataError):
            if strict:
                raise record.batch
            inputs.unreadable.append((record.label, str(record.batch)))
            continue
        own = None if record.atoms is None else record.atoms.info.get("name")
        inputs.labels.append(record.label)
        inputs.names.append(str(own) if own else Path(record.label).name)
        inputs.systems.append(record.batch)
        inputs.templates.append(record.atoms)
    if not inputs.systems:
        raise DataError(inputs.unreadable[0][1])
    return inputs


def report(result: RelaxResult, inputs: Inputs) -> str:
    """One row per structure; what went wrong, in words, below the table."""
    rows, lines = [], []
    for i, status in enumerate(result.status):
        numbers = result.batches[i].atomic_numbers.tolist()
        row = [inputs.names[i], formula(numbers), str(len(numbers)), status.name.lower()]
        row += [str(result.steps[i]), fixed(result.fmax[i], 4)]
        row += [fixed(result.energy[i] / max(len(numbers), 1), 4)]
        rows.append([*row, fixed(100 * result.volume_change[i], 2)])
        if status not in (Status.CONVERGED, Status.MAX_STEPS):
            lines.append(f"{inputs.labels[i]}: {result.reasons[i]}.")
    for label, reason in inputs.unreadable:
        rows.append([Path(label).name, "-", "-", "invalid", "-", "-", "-", "-"])
        lines.append(reason)
    return "\n".join([table(HEADERS, rows, left=2), "", *lines])


def summary(result: RelaxResult, inputs: Inputs) -> str:
    """How many structures ended how."""
    counts = Counter(status.name.lower() for status in result.status)
    counts["invalid"] += len(inputs.unreadable)
    parts = [f"{count} {name}" for name, count in counts.most_common() if count]
    return f"{counts.total()} structures: {', '.join(parts)}."


def formula(numbers: Sequence[int]) -> str:
    """Elements with their counts, in the order of first appearance."""
    from dpa4sim.batch import symbol

    return "".join(symbol(z) + (str(n) if n > 1 else "") for z, n in Counter(numbers).items())


def write(path: Path, result: RelaxResult, inputs: Inputs, chosen: Sequence[int]) -> None:
    """Relaxed structures with energy, forces and stress; the file appears whole or not at all.

    Each keeps the info and arrays that it came with, apart from reference labels, and gets its
    `input`, `status` and `steps`.
    """
    from ase.io import write as write_atoms

    from dpa4sim.adapters.ase import to_atoms

    frames = []
    for i in chosen:
        given = inputs.templates[i]
        templates = None if given is None else [given]
        (atoms,) = to_atoms(result.batches[i], result.predictions[i], templates=templates)
        for table_of in (atoms.info, atoms.arrays):
            for key in [key for key in table_of if key.startswith(REFERENCE)]:
                del table_of[key]
        atoms.info |= {"input": inputs.labels[i], "status": result.status[i].name.lower()}
        atoms.info["steps"] = result.steps[i]
        frames.append(atoms)
    with written_whole(path) as partial:
        write_atoms(partial, frames, format="extxyz")
