"""dpa4sim convert IN OUT: DeePMD-kit .pt <-> dpa4sim .safetensors, by suffix."""

from __future__ import annotations

import argparse
from pathlib import Path

from dpa4sim.cli.options import check_output, written_whole
from dpa4sim.errors import ConfigError, ModelError

OTHER = {".pt": ".safetensors", ".safetensors": ".pt"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """IN, OUT and --branch."""
    parser.add_argument("source", metavar="IN", type=Path, help="a .pt or a .safetensors file")
    parser.add_argument("out", metavar="OUT", type=Path, help="a file of the other kind")
    parser.add_argument("--branch", help="branch of a multi-task DeePMD-kit checkpoint")


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
        if args.branch is not None:
            raise ConfigError(f"{source} has no branches; leave out --branch.")
        n_tensors = _to_deepmd(source, out)
    print(f"{source} -> {out}  ({n_tensors} tensors)")
    return 0


def _from_deepmd(source: Path, out: Path, branch: str | None) -> int:
    from dpa4sim.adapters.deepmd import read_deepmd
    from dpa4sim.property import load_any

    _, state = read_deepmd(source, branch)
    dtype = str(state["species_table"].dtype).removeprefix("torch.")
    load_any(source, branch=branch, dtype=dtype).save(out)
    return len(state)


def _to_deepmd(source: Path, out: Path) -> int:
    from dpa4sim.adapters.deepmd import write_deepmd
    from dpa4sim.model_file import read_safetensors

    config, state, _ = read_safetensors(source)
    with written_whole(out) as partial:
        write_deepmd(config, state, partial)
    return len(state)
