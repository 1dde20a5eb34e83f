"""States of the engine's methods at their first step, for laws that hold for all of them."""

from __future__ import annotations

from typing import Any

import torch
from toy import crystals, packed, without_bulk

from dpa4sim.batch import Batch
from dpa4sim.relax.fire import FireSettings, fire_init
from dpa4sim.relax.freedom import unconstrained
from dpa4sim.relax.lbfgs import LbfgsSettings, lbfgs_init
from dpa4sim.simulate.state import md_init, set_conditions


def batch() -> Batch:
    """Crystals, a slab and a molecule together."""
    return packed([*crystals().values(), *without_bulk().values()])


def free_cells(systems: Batch) -> torch.Tensor:
    """Which cells may move: those of crystals."""
    return systems.pbc.all(1)


def fire(systems: Batch, model: Any) -> Any:
    freedom = unconstrained(systems, free_cells(systems))
    settings = FireSettings(fmax=1e-3)
    return fire_init(systems, model, freedom=freedom, cell_filter="frechet", settings=settings)


def lbfgs(systems: Batch, model: Any) -> Any:
    freedom = unconstrained(systems, free_cells(systems))
    return lbfgs_init(systems, model, freedom=freedom, settings=LbfgsSettings(fmax=1e-3))


def dynamics(systems: Batch, model: Any) -> Any:
    conditions = set_conditions(systems, n_steps=50, temperature=600.0, timestep=2.0)
    return md_init(systems, model, conditions=conditions)
