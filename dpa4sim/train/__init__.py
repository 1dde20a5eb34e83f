"""Training: labelled data -> Potential.

    settings.py     what a run is asked to do
    build.py        everything before step 0: data that is fit, the network to begin with
    feed.py         which frames each step sees
    loss.py         the objective and the errors that people read
    compiled.py     the network with twice differentiable kernels, eager or compiled
    muon.py         HybridMuon; polar.py: its polar factors
    schedule.py     learning rates over the steps
    average.py      the running mean of the weights
    finetune.py     new species, shifts, frozen groups;  lora.py: low-rank updates
    loop.py         batches -> weights;  ranks.py: several processes
    validation.py, report.py, directory.py   what a run leaves behind
    run.py          train(): the call that puts it all together

Importing any of these binds this package to the name `dpa4sim.train`, which is also that of the
public function: so the package can be called.  Its parts are imported on first use, so that an
optimiser alone costs no more than itself.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

_HOME = {"TrainResult": "run", "read_settings": "settings", "train": "run"}

__all__ = ["TrainResult", "read_settings", "train"]

if TYPE_CHECKING:
    from dpa4sim.train.run import TrainResult, train
    from dpa4sim.train.settings import read_settings


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"dpa4sim.train has no '{name}'. It has {', '.join(_HOME)}.")
    return getattr(import_module(f"dpa4sim.train.{_HOME[name]}"), name)


class _Callable(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> "TrainResult":
        """dpa4sim.train.run.train, which see."""
        run: TrainResult = import_module("dpa4sim.train.run").train(*args, **options)
        return run


sys.modules[__name__].__class__ = _Callable
