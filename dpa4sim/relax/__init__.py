"""Relaxation: Batch -> relaxed Batch and Status.

    cell.py       atoms and lattice as one set of free coordinates
    criterion.py  converged or sick, read off after each evaluation
    fire.py       FIRE as ASE takes it: fire_init, fire_step
    pack.py       picking and joining the systems of packed records
    run.py        relax(): the loop that feeds, judges and empties the working batch

Importing any of these binds this package to the name `dpa4sim.relax`, which is also that of the
public function: so the package can be called.
"""

import sys
from types import ModuleType

from dpa4sim.relax.run import Relaxed, RelaxResult, relax

__all__ = ["RelaxResult", "Relaxed", "relax"]


class _Callable(ModuleType):
    __call__ = staticmethod(relax)


sys.modules[__name__].__class__ = _Callable
