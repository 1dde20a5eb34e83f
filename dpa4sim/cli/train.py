"""dpa4sim train RUN.toml [key=value ...]: train a network, or go on with a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dpa4sim.cli.table import table
from dpa4sim.errors import ConfigError

MIXED = True
"""Overrides may come after options."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN.toml, overrides, the folder, and the template."""
    parser.add_argument("settings", metavar="RUN.toml", nargs="?", help="the settings")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="change a setting: optimizer.lr=3e-4",
    )
    parser.add_argument(
        "-o", "--out", metavar="DIR", type=Path, help="run directory [RUN, without .toml]"
    )
    parser.add_argument("--quiet", action="store_true", help="no live line on stderr")
    parser.add_argument(
        "--template", action="store_true", help="print commented settings to begin with"
    )


def run(args: argparse.Namespace) -> int:
    """Train, print the errors of the best weights."""
    if args.template:
        print((Path(__file__).parents[1] / "train" / "template.toml").read_text(), end="")
        return 0
    if args.settings is None:
        raise ConfigError(
            "Give the settings: dpa4sim train RUN.toml. `dpa4sim train --template > run.toml` "
            "writes a file to begin with."
        )
    from dpa4sim.cli.options import check_device
    from dpa4sim.kernels.workspace import keep_pages
    from dpa4sim.train import read_settings, train
    from dpa4sim.train.report import SHOWN, plain

    device = read_settings(args.settings, args.overrides).run.device
    check_device(device)
    if device == "cpu":
        keep_pages()  # page faults take up to a fifth of a step otherwise
    result = train(
        args.settings,
        directory=args.out,
        overrides=args.overrides,
        progress=False if args.quiet else None,
    )
    rows = [
        (name.replace("_", " ").replace(":", ": "), SHOWN[plain(name)][0], f"{value:.4g}")
        for name, value in result.errors.items()
        if plain(name) in SHOWN and value == value
    ]
    print(table(("error on the validation frames", "unit", ""), rows, left=2))
    skipped = f", {result.skipped} skipped" if result.skipped else ""
    print(f"\n{result.steps} steps{skipped}; best weights: {result.directory}/best.safetensors")
    sys.stdout.flush()
    return 0
