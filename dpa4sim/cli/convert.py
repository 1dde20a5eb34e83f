"""dpa4sim convert IN OUT: DeePMD-kit .pt <-> dpa4sim .safetensors, by suffix."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from dpa4sim.cli.options import check_output, written_whole
from dpa4sim.errors import ConfigError, ModelError

OTHER = {".pt": ".safetensors", ".safetensors": ".pt"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """IN, OUT and --branch."""
    parser.add_argument("source", metavar="IN", type=Path, help="a .pt or a .safetensors file")
    parser.add_argument("out", metavar="OUT", type=Path, help="a file of the other kind")
    parser.add_argument("--branch", help="one branch of several [all of them]")


def run(args: argparse.Namespace) -> int:
    """Convert without changing a number."""
    source, out = args.source, args.out
    if source.suffix not in OTHER:
        raise ConfigError(f"{source} should end in .pt or .safetensors.")
    check_output(out, (OTHER[source.suffix],))
    if not source.is_file():
        raise ModelError(f"There is no file {source}.")
    if source.suffix == ".pt":
        n_tensors = _from_deepmd(source, out, args.branch)
    else:
        n_tensors = _to_deepmd(source, out, args.branch)
    print(f"{source} -> {out}  ({n_tensors} tensors)")
    return 0


def _from_deepmd(source: Path, out: Path, branch: str | None) -> int:
    from dpa4sim.adapters.deepmd import read_deepmd
    from dpa4sim.branches import branch_names, load_branches
    from dpa4sim.property import load_any

    names = branch_names(source) if branch is None else ()
    states = [read_deepmd(source, name)[1] for name in names or (branch,)]
    dtype = str(states[0]["species_table"].dtype).removeprefix("torch.")
    opened = load_branches if names else partial(load_any, branch=branch)
    opened(source, dtype=dtype).save(out)
    return sum(map(len, states))


def _to_deepmd(source: Path, out: Path, branch: str | None) -> int:
    from dpa4sim.adapters.deepmd import write_deepmd, write_deepmd_branches
    from dpa4sim.branches import branch_names
    from dpa4sim.model_file import read_safetensors

    names = branch_names(source) if branch is None else ()
    found = {name: read_safetensors(source, name)[:2] for name in names or (branch,)}
    with written_whole(out) as unfinished:
        if names:
            write_deepmd_branches({str(name): model for name, model in found.items()}, unfinished)
        else:
            write_deepmd(*found[branch], unfinished)
    return sum(len(state) for _, state in found.values())
