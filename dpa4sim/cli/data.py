"""dpa4sim data convert | info | check: labelled data before it is trained on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from dpa4sim.cli.options import check_output
from dpa4sim.cli.table import properties, table
from dpa4sim.config import PROPERTY_NAME
from dpa4sim.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dpa4sim.data.check import Problem
    from dpa4sim.data.frame import LabelKeys

LABELS = ("energy", "forces", "stress", "virial")
SPINS = ("magmoms", "magnetic_forces")

LISTED = 20
"""Problems of one kind, and outliers, that are printed unless more are asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The three sub-verbs."""
    verbs = parser.add_subparsers(metavar="convert|info|check", required=True)
    convert = verbs.add_parser("convert", help="files of any format -> one HDF5 store")
    _add_inputs(convert)
    convert.add_argument("-o", "--out", metavar="OUT.h5", type=Path, required=True)
    convert.add_argument(
        "--cutoff", type=float, default=6.0, help="count edges within this, in Å [6.0]"
    )
    convert.add_argument("--subset", metavar="NAME", help="name of the subset, for all frames")
    convert.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out frames that cannot be used, and name them",
    )
    convert.set_defaults(step=_convert)
    info = verbs.add_parser("info", help="what a store holds, and which frames stand out")
    info.add_argument("store", metavar="FILE", type=Path, help="a store")
    info.add_argument("--list", type=int, default=LISTED, help=f"outliers to print [{LISTED}]")
    info.set_defaults(step=_info)
    check = verbs.add_parser("check", help="every problem, by file, frame and key")
    _add_inputs(check)
    check.add_argument(
        "--require",
        nargs="+",
        metavar="LABEL",
        help="labels that every frame must have [energy forces, or the properties if given]",
    )
    check.add_argument("--model", help="a trusted model to compare signs and units with")
    check.add_argument(
        "--list", type=int, default=LISTED, help=f"problems of one kind to print [{LISTED}]"
    )
    check.set_defaults(step=_check)


def run(args: argparse.Namespace) -> int:
    """The sub-verb."""
    return int(args.step(args))


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", metavar="IN", nargs="+", help="files or folders with labels")
    for name in LABELS:
        parser.add_argument(f"--{name}-key", metavar="KEY", help=f"where the {name} labels are")
    parser.add_argument(
        "--magmoms-key",
        metavar="KEY",
        help="where the magnetic moments are, in Bohr magnetons; without it they are read where "
        "magnetic forces are",
    )
    parser.add_argument(
        "--magnetic-forces-key", metavar="KEY", help="where -dE/dm is, in eV per Bohr magneton"
    )
    parser.add_argument(
        "--property",
        metavar="NAME",
        action="append",
        default=[],
        help="also read this property of the structures: NAME.npy of DeePMD data, the key NAME of "
        "an extxyz frame; may be given several times",
    )


def _keys(args: argparse.Namespace) -> LabelKeys:
    from dpa4sim.data.frame import LabelKeys

    for name in args.property:
        if not PROPERTY_NAME.fullmatch(name):
            raise ConfigError(f"--property {name!r} cannot be a name. Use letters, digits and '_'.")
    keys = {name: getattr(args, f"{name}_key") for name in (*LABELS, *SPINS)}
    return LabelKeys(**keys, properties=tuple(args.property))


def _convert(args: argparse.Namespace) -> int:
    from dpa4sim.data.read import read_entries
    from dpa4sim.data.store import Store
    from dpa4sim.data.writer import write_store

    check_output(args.out, (".h5",))
    if not args.cutoff > 0:
        raise ConfigError(f"--cutoff {args.cutoff:g} holds no edge. Give a distance in Å.")
    refused: list[DataError] = []
    entries = read_entries(args.inputs, _keys(args), subset=args.subset)
    refuse = refused.append if args.skip_bad else None
    write_store(args.out, entries, cutoff=args.cutoff, refuse=refuse)
    for error in refused:
        print(f"left out: {error}", file=sys.stderr)
    store = Store(args.out)
    has = [f"{int(store.has(name).sum())} {name}" for name in LABELS[:3]]
    has += [f"{int(store.has(name).sum())} {name}" for name in SPINS if store.has_spins]
    has += [f"{int(store.has_property(name).sum())} {name}" for name in store.properties]
    left_out = f", {len(refused)} left out" if refused else ""
    print(f"{args.out}: {len(store)} frames ({', '.join(has)}){left_out}")
    print(f"content {store.content_hash}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from dpa4sim.data.statistics import energy_shifts, outliers, summary
    from dpa4sim.data.store import Store

    store = Store(args.store)
    found = summary(store)
    elements = "  ".join(f"{name} {n}" for name, n in found.elements.items())
    low, mean, high = found.edges
    rows = [
        ("store", str(args.store)),
        ("frames", f"{found.frames:,}"),
        ("atoms", f"{found.atoms:,}"),
        ("elements", fill(f"{len(found.elements)}: {elements}", 80)),
        ("labels", "  ".join(f"{name} {n}" for name, n in found.coverage.items())),
        ("edges per frame", f"{low} ... {high}, mean {mean:.1f} within {found.cutoff:g} Å"),
        ("shortest pair", f"{found.shortest:.3f} Å"),
        ("precision", store.dtype.name),
        ("content", store.content_hash),
    ]
    if len(found.subsets) > 1:
        rows.insert(
            4, ("subsets", fill("  ".join(f"{n or '-'} {k}" for n, k in found.subsets.items()), 80))
        )
    if store.properties:
        numbers = ((name, f"{width} numbers") for name, width in store.properties.items())
        rows.append(("properties", "  ".join(f"{name}: {text}" for name, text in numbers)))
    if store.has("energy").any():
        shifts = zip(store.species, energy_shifts(store), strict=True)
        rows.append(("fitted eV", fill("  ".join(f"{name} {e:.3f}" for name, e in shifts), 80)))
    print(properties(rows), end="\n\n")
    names = {"energy": "energy", "forces": "force norm", "stress": "pressure"}
    names |= {"magmoms": "moment, where not 0", "magnetic_forces": "magnetic force"}
    lines = [
        (
            names[k],
            r.unit,
            str(r.n_frames),
            *(f"{x:.4g}" for x in (r.low, r.mean, r.high, r.spread)),
        )
        for k, r in found.ranges.items()
    ]
    if lines:
        print(table(("quantity", "unit", "frames", "low", "mean", "high", "spread"), lines, left=2))
    strange = outliers(store)
    print(f"\n{len(strange)} frames stand out" + (":" if strange else ""))
    for each in strange[: args.list]:
        print(f"  {each.where}: {each.reason}")
    if len(strange) > args.list:
        print(f"  and {len(strange) - args.list} more (--list {len(strange)})")
    return 0


def _check(args: argparse.Namespace) -> int:
    from dpa4sim.data.check import check
    from dpa4sim.data.read import read_entries

    model = None
    if args.model is not None:
        from dpa4sim.potential import load

        model = load(args.model)
    keys = _keys(args)
    require = args.require or ([] if args.property else ["energy", "forces"])
    problems = check(lambda: read_entries(args.inputs, keys), require=require, model=model)
    if not problems:
        print("no problem found")
        return 0
    print(_listed(problems, args.list))
    return 1


def _listed(problems: list[Problem], most: int) -> str:
    """Errors before warnings, kind by kind."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in sorted(problems, key=lambda p: p.level):
        kinds.setdefault((problem.level, problem.kind), []).append(problem)
    lines = []
    for (level, kind), group in kinds.items():
        lines.append(f"{level}: {kind} ({len(group)})")
        lines += [f"  {p.where}: {p.text}" if p.where else f"  {p.text}" for p in group[:most]]
        if len(group) > most:
            lines.append(f"  and {len(group) - most} more (--list {len(group)})")
    return "\n".join(lines)
