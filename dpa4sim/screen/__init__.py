"""Screening: candidates -> energies above the convex hull, in a directory that survives kill -9.

    candidate.py  a candidate, packed
    settings.py   what was asked for
    campaign.py   the directory
    ledger.py     who the candidates are, and how far each has come; records.py its rows
    reader.py     files are read in a process that may die
    ingest.py     read, validate, deduplicate, cut into chunks
    runner.py     chunk after chunk: relax, check, store
    worker.py     who works, and who is dead
    workers.py    several processes on one machine
    merge.py      shards of several machines
    cluster.py    shards by Parsl
    table.py      the table of results and its parts
    rank.py       results and references -> the ranked table, the report, the exports
    run.py        screen(): the call that puts it all together

Importing any of these binds this package to the name `dpa4sim.screen`, which is also that of the
public function: so the package can be called.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpa4sim.screen.candidate import Candidate
    from dpa4sim.screen.run import screen

__all__ = ["Candidate", "screen"]

_HOME = {"Candidate": "candidate", "screen": "run"}


class _Callable(ModuleType):
    def __call__(self, *args: Any, **settings: Any) -> Any:
        """`dpa4sim.screen.run.screen`."""
        return import_module("dpa4sim.screen.run").screen(*args, **settings)


sys.modules[__name__].__class__ = _Callable


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the reader's process needs little of all this."""
    if name not in _HOME:
        raise AttributeError(f"dpa4sim.screen has no '{name}'. It has {', '.join(_HOME)}.")
    return getattr(import_module(f"dpa4sim.screen.{_HOME[name]}"), name)
