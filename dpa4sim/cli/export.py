"""dpa4sim export MODEL OUT: a compiled .pt2 that needs no dpa4sim, or a .mliap for LAMMPS."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dpa4sim.cli.options import add_model, check_output, open_network
from dpa4sim.cli.table import properties
from dpa4sim.errors import ConfigError

SUFFIXES = (".pt2", ".mliap")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, OUT and --structure."""
    add_model(parser)
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help=".pt2: compiled by AOTInductor for this kind of processor; "
        ".mliap: for LAMMPS's pair_style mliap unified (a DeePMD-kit .pt comes from convert)",
    )
    parser.add_argument(
        "--structure",
        metavar="FILE",
        help="also check the .pt2 on these structures, beside lattices of the model's elements",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file; a .pt2 is compiled, which takes minutes, and checked before it appears."""
    check_output(args.out, SUFFIXES)
    if args.out.suffix == ".mliap":
        return _write_mliap(args)
    potential = open_network(args)
    from dpa4sim.export import export

    print("compiling; this takes a minute or more", file=sys.stderr)
    done = export(potential, args.out, args.structure)
    checked = ", ".join(f"{atoms} atoms {edges} edges" for atoms, edges in done.sizes)
    rows = [
        ("written", str(done.path)),
        ("for", f"{args.device}, {args.dtype}"),
        ("checked on", checked),
        ("largest difference", f"{done.energy_error:.1e} of the atomic energies"),
        ("", f"{done.gradient_error:.1e} of dE/dvector"),
    ]
    print(properties(rows))
    return 0


def _write_mliap(args: argparse.Namespace) -> int:
    if args.structure is not None:
        raise ConfigError("A .mliap file is not compiled, so there is no check. Omit --structure.")
    from dpa4sim.adapters.mliap import Unified

    unified = Unified(open_network(args))
    unified.save(args.out)
    elements = " ".join(unified.element_types)
    print(f"pair_style mliap unified {args.out} 0\npair_coeff * * ...   # of {elements}")
    return 0
