"""Relaxation: Batch -> relaxed Batch and Status.

    freedom.py    what may move, and against which pressure
    symmetry.py   the space group that a structure keeps
    cell.py       atoms and lattice as one set of free coordinates
    criterion.py  converged or sick, read off after each evaluation
    fire.py       FIRE as ASE takes it: fire_init, fire_step
    lbfgs.py      L-BFGS with a model Hessian: lbfgs_init, lbfgs_step; its parts are
                  point.py, history.py, hessian.py, contraction.py, layout.py, rescue.py
    terms.py      what was asked for of each structure
    method.py     what the pool does to relaxations
    result.py     how they ended
    run.py        relax(), relax_each(): the calls that put it all together

Importing any of these binds this package to the name `dpa4sim.relax`, which is also that of the
public function: so the package can be called.
"""

import sys
from types import ModuleType

from dpa4sim.relax.result import Relaxed, RelaxResult
from dpa4sim.relax.run import relax, relax_each

__all__ = ["RelaxResult", "Relaxed", "relax", "relax_each"]


class _Callable(ModuleType):
    __call__ = staticmethod(relax)


sys.modules[__name__].__class__ = _Callable
