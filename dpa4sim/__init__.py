"""dpa4sim: the DPA4 interatomic potential as a batched engine.

structures -> adapters -> Batch -> edges -> model -> Potential -> {relax, simulate} -> screen
labelled structures -> data -> train -> Potential

adapters/    the only place that speaks another project's vocabulary
batch.py     Batch: many structures packed in flat tensors
branches.py  models that share their trunk: several theories in one file
cli/         one file per verb
compiled.py  the network as one compiled graph, compiled_steps.py the steps around it
composite.py models made of models: sums
config.py    DPA4Config: the options of the network
data/        labelled structures on disk -> training batches
direct.py    DirectModel: forces predicted instead of derived (experimental)
dispersion.py DFT-D3, a term for sums
edges.py     neighbour lists, edge vectors, CSR order
ensemble.py  several networks: mean and spread
embed.py     descriptors and features of structures, and a file of them
errors.py    exceptions for the border, Status for systems in a batch
export.py    a potential as one compiled file
graphs.py    a network recorded as CUDA graphs
lattice.py   algebra of cells and strains
mapping.py   settings from plain values
model/       Batch -> energy, one file per subsection of paper 4.2
model_file.py networks to and from safetensors files
moments.py   what a model with spins asks of a structure
pair_search.py back-ends of the neighbour search
pool/        the working set that systems pass through, and its checkpoints
potential.py energy -> forces, stress; precision
property.py  PropertyModel: an invariant property instead of an energy; save and load
relax/       Batch -> relaxed Batch + Status
screen/      candidates -> energies above the convex hull
simulate/    Batch -> trajectories
step_graphs.py whole steps recorded as CUDA graphs
train/       labelled data -> Potential
units.py     the constants, once
verlet.py    neighbour lists that hold while systems move
wrapping.py  positions in periodic cells
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Batch": "batch",
    "Branches": "branches",
    "ConfigError": "errors",
    "DPA4Config": "config",
    "DataError": "errors",
    "DirectModel": "direct",
    "Ensemble": "ensemble",
    "MDRun": "simulate",
    "ModelError": "errors",
    "NonConservativeWarning": "errors",
    "Potential": "potential",
    "Prediction": "potential",
    "PropertyModel": "property",
    "PropertyPrediction": "property",
    "RelaxResult": "relax",
    "Relaxed": "relax",
    "ResumeError": "errors",
    "Status": "errors",
    "d3": "dispersion",
    "load": "ensemble",
    "load_branches": "branches",
    "load_property": "property",
    "md": "simulate",
    "read_trajectory": "simulate",
    "relax": "relax",
    "relax_each": "relax",
    "screen": "screen",
    "train": "train",
}

__all__ = [
    "Batch",
    "Branches",
    "ConfigError",
    "DPA4Config",
    "DataError",
    "DirectModel",
    "Ensemble",
    "MDRun",
    "ModelError",
    "NonConservativeWarning",
    "Potential",
    "Prediction",
    "PropertyModel",
    "PropertyPrediction",
    "RelaxResult",
    "Relaxed",
    "ResumeError",
    "Status",
    "d3",
    "load",
    "load_branches",
    "load_property",
    "md",
    "read_trajectory",
    "relax",
    "relax_each",
    "screen",
    "train",
]

if TYPE_CHECKING:  # the same names for editors and type checkers
    from dpa4sim.batch import Batch
    from dpa4sim.branches import Branches, load_branches
    from dpa4sim.config import DPA4Config
    from dpa4sim.direct import DirectModel
    from dpa4sim.dispersion import d3
    from dpa4sim.ensemble import Ensemble, load
    from dpa4sim.errors import (
        ConfigError,
        DataError,
        ModelError,
        NonConservativeWarning,
        ResumeError,
        Status,
    )
    from dpa4sim.potential import Potential, Prediction
    from dpa4sim.property import PropertyModel, PropertyPrediction, load_property
    from dpa4sim.relax import Relaxed, RelaxResult, relax, relax_each
    from dpa4sim.screen.run import screen
    from dpa4sim.simulate import MDRun, md, read_trajectory
    from dpa4sim.train import train


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import dpa4sim` stays instant."""
    if name not in _HOME:
        raise AttributeError(f"dpa4sim has no '{name}'. It has {', '.join(_HOME)}.")
    return getattr(import_module(f"dpa4sim.{_HOME[name]}"), name)
