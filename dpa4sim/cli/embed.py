"""dpa4sim embed MODEL DATA... -o OUT.hdf5: descriptors and features in DeePMD-kit's layout."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpa4sim.cli.options import add_model, check_output, open_single_model
from dpa4sim.cli.table import table

SUFFIXES = (".hdf5", ".h5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, DATA, OUT and the size of a batch."""
    add_model(parser)
    parser.add_argument(
        "data", metavar="DATA", nargs="+", help="structures or labelled data, in any format"
    )
    parser.add_argument("-o", "--out", metavar="OUT.hdf5", type=Path, required=True)
    parser.add_argument(
        "--batch-atoms", type=int, default=2000, help="atoms that are evaluated together [2000]"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Embed, and print the groups of the file; numbers are in the precision of --dtype."""
    check_output(args.out, SUFFIXES)
    from dpa4sim.embed import write_embeddings

    model = open_single_model(args)
    groups = write_embeddings(
        model,
        args.data,
        args.out,
        batch_atoms=args.batch_atoms,
        progress=not args.quiet,
    )
    rows = [(name, str(n)) for name, n in groups.items()]
    print(table(("group", "structures"), rows))
    print(f"\n{args.out}: {sum(groups.values())} structures")
    return 0
