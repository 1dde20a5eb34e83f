"""dpa4sim md MODEL INPUT... -o OUT.h5: batched molecular dynamics."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpa4sim.cli.options import add_allowance, add_model, add_speed, check_output, open_model
from dpa4sim.cli.relax import Inputs, formula, read
from dpa4sim.cli.table import fixed, table
from dpa4sim.errors import DataError, Status

if TYPE_CHECKING:
    from dpa4sim.simulate import MDRun

HEADERS = (
    "structure",
    "replica",
    "formula",
    "atoms",
    "status",
    "ps",
    "T (K)",
    "P (GPa)",
    "V (Å^3/atom)",
    "E (eV/atom)",
    "MSD (Å^2)",
    "drift (meV/atom)",
)
NOT_ALL = 3
"""Exit code: finished, but some trajectories did not reach their last step."""


def numbers(text: str) -> float | list[float]:
    """One number for all structures, or one each, separated by commas."""
    values = [float(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def integers(text: str) -> int | list[int]:
    """One whole number for all structures, or one each, separated by commas."""
    values = [int(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, INPUT, OUT and the settings of `dpa4sim.md`."""
    add_model(parser)
    add_speed(parser)
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="+", help="structure files, folders or globs"
    )
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="an .h5")
    _add_choices(parser)
    for name, kind, default, text in (
        (
            "temperature",
            numbers,
            300.0,
            "K, of the start [300]; one per structure: 300,600",
        ),
        ("temperature-end", numbers, None, "K, of the end, for a ramp [as at the start]"),
        ("pressure-gpa", numbers, 0.0, "of the start [0]"),
        ("pressure-end-gpa", numbers, None, "of the end, for a ramp [as at the start]"),
        ("timestep", numbers, 1.0, "fs [1]"),
        ("time-ps", numbers, 1.0, "length of the run [1]"),
        ("steps", integers, None, "length of the run, in place of --time-ps"),
        ("skip-ps", numbers, 0.0, "left out of the averages at the start [0]"),
        ("thermostat-time", numbers, 100.0, "fs [100]"),
        ("barostat-time", numbers, 1000.0, "fs [1000]"),
        ("bulk-modulus-gpa", numbers, 100.0, "stiffness that the barostat reckons with [100]"),
        ("seed", integers, 0, "of velocities and noise [0]"),
        ("replicas", int, 1, "copies of each structure [1]"),
        ("sample-every", int, 10, "steps between samples of energy, temperature, ... [10]"),
        ("frame-every", int, 100, "steps between stored frames; 0: the last only [100]"),
        ("rdf-max", float, 0.0, "range of pair distances, Å; 0: none [0]"),
        ("max-force-spread", float, None, "of an ensemble: beyond it ends as uncertain, eV/Å"),
    ):
        parser.add_argument(f"--{name}", metavar="N", type=kind, default=default, help=text)
    add_allowance(parser)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first structure that goes wrong"
    )


def _add_choices(parser: argparse.ArgumentParser) -> None:
    for name, choices, text in (
        ("ensemble", ("nvt", "nve", "npt"), "[nvt]"),
        ("thermostat", ("langevin", "bussi"), "of nvt [langevin]; npt has bussi"),
        ("coupling", ("isotropic", "anisotropic", "triclinic"), "of npt [isotropic]"),
    ):
        parser.add_argument(f"--{name}", choices=choices, default=choices[0], help=text)


def run(args: argparse.Namespace) -> int:
    """Run everything in one call, write OUT, print the table."""
    check_output(args.out, (".h5", ".hdf5"))
    inputs = read(args.inputs, args.strict)
    potential = open_model(args)
    from dpa4sim.simulate.run import md

    skipped = {"model", "branch", "device", "dtype", "compile", "kernels", "accuracy"}
    skipped |= {"inputs", "out", "run"}
    settings: dict[str, Any] = {k: v for k, v in vars(args).items() if k not in skipped}
    runs = md(potential, inputs.systems, output=args.out, progress=True, **settings)
    if all(run.status == Status.INVALID for run in runs):
        raise DataError(f"{inputs.labels[0]} cannot be simulated: {runs[0].reason}.")
    print(report(runs, inputs))
    counts = Counter(run.status.name.lower() for run in runs)
    counts["invalid"] += len(inputs.unreadable)
    parts = [f"{count} {name}" for name, count in counts.most_common() if count]
    print(f"{counts.total()} trajectories: {', '.join(parts)}. Written to {args.out}.")
    return 0 if set(counts) - {"invalid"} == {"completed"} and not counts["invalid"] else NOT_ALL


def report(runs: Sequence[MDRun], inputs: Inputs) -> str:
    """One row per trajectory; what went wrong, in words, below the table."""
    rows, lines = [], []
    for each in runs:
        species = each.batch.atomic_numbers.tolist()
        n, mean = len(species), each.means
        row = [inputs.names[each.structure], str(each.replica), formula(species), str(n)]
        row += [each.status.name.lower(), fixed(each.time_ps, 3), fixed(mean["temperature"], 0)]
        row += [fixed(mean["pressure_gpa"], 2), fixed(mean["volume"] / n, 3)]
        row += [fixed(mean["energy"] / n, 4), fixed(each.msd, 2), fixed(1000 * each.drift, 3)]
        rows.append(row)
        if each.status is not Status.COMPLETED:
            lines.append(f"{inputs.labels[each.structure]}: {each.reason}.")
    for label, reason in inputs.unreadable:
        rows.append([Path(label).name, "-", "-", "-", "invalid", *["-"] * 7])
        lines.append(reason)
    text = table(HEADERS, rows, left=3)
    return "\n".join([text, "", *lines]) if lines else text
