"""The command `dpa4sim`: one file per verb, each parses, calls one public function, prints a table.

stdout: the result table.  stderr: progress and errors.  Exit codes: 0 all good, 1 error, 2 usage,
3 finished but some systems did not converge.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from dpa4sim import __version__
from dpa4sim.errors import Dpa4simError

VERBS = {
    "relax": "relax structures together, in one batch",
    "md": "molecular dynamics of many structures together",
    "screen": "a campaign: many candidates, relaxed and ranked above the convex hull",
    "data": "labelled data: convert it to a store, look at it, check it",
    "train": "train a network on labelled structures, or go on with a run",
    "eval": "errors against reference labels",
    "convert": "DeePMD-kit .pt <-> dpa4sim .safetensors",
    "export": "a compiled file that runs without dpa4sim, or one for LAMMPS's ML-IAP",
    "embed": "descriptors and features of structures, as one HDF5 file",
    "info": "what a model is: size, elements, options, origin, licence",
    "doctor": "versions, GPU, kernels and a self-check",
}
GOOD, ERROR, USAGE, NOT_CONVERGED, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and say how it ended, as an exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    verb = next((word for word in words if not word.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"Did you mean '{near[0]}'?" if near else f"The verbs are {', '.join(VERBS)}."
        print(f"error: dpa4sim has no verb '{verb}'. {hint}", file=sys.stderr)
        return USAGE
    args = _parse(verb, words)
    try:
        return int(args.run(args))
    except Dpa4simError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'A file'}: {error.strerror or error}.")
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _parse(verb: str | None, words: list[str]) -> argparse.Namespace:
    """The arguments; only those of the one verb that is asked for are known."""
    parser = argparse.ArgumentParser(
        prog="dpa4sim", description="The DPA4 interatomic potential as a batched engine."
    )
    parser.add_argument("--version", action="version", version=f"dpa4sim {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name == verb:
            module = import_module(f"dpa4sim.cli.{name}")
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
            if words[0] == verb and getattr(module, "MIXED", False):
                return sub.parse_intermixed_args(words[1:])
    return parser.parse_args(words)


def _fail(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return ERROR
