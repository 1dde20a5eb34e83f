"""The start of the shipped model: an earlier one with more elements and a wider cutoff.

    python workflows/seed_start.py EARLIER.safetensors START.safetensors --train universal_train.h5

The shipped `seed` went on from the one before it, which this repository's history holds (50
elements, 5 Å).  A new element starts as a copy of its nearest kin, and the radial functions keep
their learned frequencies under the wider envelope.  With `[finetune] model = "START.safetensors"`
the training of workflows/train/universal.toml goes on from there: random weights that have to
learn 78 elements gain little in their first 300 steps.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from dpa4sim.data.store import Store
from dpa4sim.model import DPA4
from dpa4sim.potential import Potential, load
from dpa4sim.train.finetune import extend_species


def widened(model: DPA4, cutoff: float) -> DPA4:
    """The same weights under another cutoff (Å)."""
    wide = DPA4(replace(model.config, cutoff=cutoff), dtype=model.species_table.dtype)
    wide.load_state_dict(model.state_dict())
    return wide


def main() -> None:
    """Extend, widen, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("earlier", type=Path)
    parser.add_argument("start", type=Path)
    parser.add_argument("--train", type=Path, required=True, help="store with all the elements")
    parser.add_argument("--cutoff", type=float, default=6.0, help="Å [6]")
    args = parser.parse_args()
    model = load(args.earlier).model
    known = model.config.species
    new = [symbol for symbol in Store(args.train).species if symbol not in known]
    Potential(widened(extend_species(model, new), args.cutoff)).save(args.start)
    print(f"{len(known)} + {len(new)} elements, {args.cutoff:g} Å: {args.start}")


if __name__ == "__main__":
    main()
