"""Where systems are, and what holds there: what a minimiser of the enthalpy needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.edges import Edges, neighbors
from dpa4sim.lattice import volume
from dpa4sim.potential import EnergyModel, Prediction
from dpa4sim.relax.criterion import residual
from dpa4sim.relax.freedom import Freedom, cell_work, from_strain, project_forces


@dataclass(frozen=True)
class Point:
    """Where each system is, and what holds there.

    Args:
        positions: Å.
        cell: Å.
        prediction: what the model says.
        force: on the atoms as far as they may move, eV/Å.
        work: B_k : W as far as the cell may strain, eV.
        volume: V in Å^3; zero without a cell.
        enthalpy: E + p V, eV.
        residual: the largest of |force| and of the rows of W / n, eV/Å.
    """

    positions: Float[Tensor, "atom 3"]
    cell: Float[Tensor, "system 3 3"]
    prediction: Prediction
    force: Float[Tensor, "atom 3"]
    work: Float[Tensor, "system 6"]
    volume: Float[Tensor, " system"]
    enthalpy: Float[Tensor, " system"]
    residual: Float[Tensor, " system"]


def evaluate(batch: Batch, model: EnergyModel, freedom: Freedom) -> tuple[Point, Edges]:
    """The point at the geometry of the batch, and the edges there."""
    prediction = model(batch)
    edges = prediction.edges
    edges = neighbors(batch, model.cutoff) if edges is None else edges
    force = project_forces(freedom, batch, prediction.forces)
    work = cell_work(freedom, batch, prediction.stress)
    size, space = batch.n_atoms.double().clamp(min=1.0), volume(batch.cell)
    point = Point(
        positions=batch.positions,
        cell=batch.cell,
        prediction=replace(prediction, edges=None),
        force=force,
        work=from_strain(work),
        volume=space,
        enthalpy=prediction.energy + freedom.pressure * space,
        residual=residual(batch, force, work / size[:, None, None]),
    )
    return point, edges
