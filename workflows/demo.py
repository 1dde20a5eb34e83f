"""Relax every crystal of dpa4sim/crystals in one call, and compare with the measured volumes.

    python workflows/demo.py [--docs]

Writes demo/relaxed.extxyz and demo/demo.png; with --docs also docs/demo.png, the README's picture.
The crystals start from measured lattice parameters; the model that is shipped relaxes their cells.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from dpa4sim.batch import Batch
from dpa4sim.cli.options import open_model
from dpa4sim.cli.relax import Inputs, read, report, summary, write
from dpa4sim.errors import Dpa4simError, Status
from dpa4sim.plots import Crystal, draw_volumes
from dpa4sim.relax import RelaxResult, relax

ROOT = Path(__file__).parents[1]
CRYSTALS = ROOT / "dpa4sim" / "crystals" / "experimental.extxyz"

FAMILIES = {
    "oxides": {"O"},
    "halides": {"F", "Cl", "Br", "I"},
    "chalcogenides": {"S", "Se", "Te"},
    "pnictides, carbides": {"N", "P", "As", "Sb", "C", "B"},
}
"""Name and anions; the first that fits."""


def main() -> int:
    """Relax, print, write, draw."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    potential = open_model(args)
    inputs = read([str(args.crystals)], strict=True)
    systems = [stretched(system, args.stretch) for system in inputs.systems]
    start = time.perf_counter()
    result = relax(potential, systems, fmax=args.fmax, max_steps=args.max_steps, progress=True)
    seconds = time.perf_counter() - start
    usable = [i for i, status in enumerate(result.status) if status != Status.INVALID]
    write(args.out / "relaxed.extxyz", result, inputs, usable)
    points = compare(result, inputs)
    draw_volumes(points, args.out / "demo.png")
    if args.docs:
        shutil.copyfile(args.out / "demo.png", ROOT / "docs" / "demo.png")
    print(report(result, inputs))
    error = sorted(abs(point.deviation) for point in points)[len(points) // 2]
    print(f"{summary(result, inputs)} {seconds:.0f} s; median error of the volume {error:.1f} %.")
    print(f"{args.out / 'relaxed.extxyz'} and {args.out / 'demo.png'} are written.")
    return 0


def stretched(system: Batch, percent: float) -> Batch:
    """The same crystal with every length so much longer.

    Agreement that the measured start alone had given would go away with it.
    """
    factor = 1 + percent / 100
    return system.with_geometry(factor * system.positions, factor * system.cell)


def compare(result: RelaxResult, inputs: Inputs) -> list[Crystal]:
    """Measured and relaxed volume of every crystal that ended at a sound geometry."""
    points = []
    for i, status in enumerate(result.status):
        if status not in (Status.CONVERGED, Status.MAX_STEPS):
            continue
        atoms = inputs.templates[i]
        measured = atoms.get_volume() / len(atoms)
        points.append(
            Crystal(
                label=str(atoms.info.get("formula", inputs.names[i])),
                family=family(set(atoms.get_chemical_symbols())),
                measured=measured,
                relaxed=float(result.batches[i].volume[0]) / len(atoms),
                steps=result.steps[i],
                converged=status == Status.CONVERGED,
            )
        )
    return points


def family(symbols: set[str]) -> str:
    """A word for what a crystal is made of."""
    if len(symbols) == 1:
        return "elements"
    for name, anions in FAMILIES.items():
        if symbols & anions:
            return name
    return "intermetallics"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="seed")
    parser.add_argument("--crystals", type=Path, default=CRYSTALS)
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/Å [0.05]")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--stretch", type=float, default=0.0, help="of the start, percent [0]")
    parser.add_argument("--docs", action="store_true", help="also write docs/demo.png")
    parser.set_defaults(branch=None, dtype="float32")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Dpa4simError as error:
        sys.exit(f"error: {error}")
