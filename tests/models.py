"""Small random DPA4 networks with every part switched on, and structures that reach every part."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import torch
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.edges import neighbors
from dpa4sim.model import DPA4
from dpa4sim.model.edge_features import EdgeFeatures
from dpa4sim.model.frames import RotationRows
from dpa4sim.potential import Potential

SPECIES = ("Si", "C", "O")
NUMBERS = (14, 6, 8)
CUTOFF = 4.5
"""Å; a float32 number, so that the envelope's float32 cutoff is the same."""

BASE = DPA4Config(
    species=SPECIES,
    cutoff=CUTOFF,
    channels=8,
    n_radial=6,
    n_blocks=2,
    max_degree=2,
    so2_layers=2,
)

OPTION_SETS = {
    "neo": replace(BASE, max_degree=3, so2_layers=3, layer_scale=True),
    "order_2": replace(BASE, max_degree=3, max_order=2, product_rank=2, edge_norm=False),
    "focuses": replace(
        BASE, n_focus=2, n_heads=2, focus_channels=6, bias=True, so2_norm=True, extra_degree=1
    ),
    "so3_grid": replace(
        BASE,
        degree_schedule=(3, 1),
        ffn_grid="so3",
        message_grid=True,
        message_grid_operation="branch",
        message_grid_branches=2,
        grid_order=2,
        readout="mlp",
    ),
    "scatter": replace(
        BASE,
        n_heads=0,
        edge_product="none",
        ffn_grid="none",
        radial_basis="gaussian",
        norm_places=("before_convolution", "after_ffn"),
    ),
    "per_channel": replace(BASE, product_rank=0, ffn_blocks=2, gated_linear=False, max_order=0),
    "zbl": replace(BASE, zbl_inner=0.8, zbl_outer=1.6, n_focus=2),
    "version_1_0": replace(BASE, descriptor_version="1.0", edge_product="degree"),
}
"""Each option away from its default at least once; two blocks, so that geometry goes twice."""

FILE_SETS = OPTION_SETS | {
    "charge_spin": replace(BASE, charge_spin=True, default_charge_spin=(1.0, 2.0)),
    "excluded": replace(BASE, excluded_pairs=(("Si", "O"),), epsilon=1e-6),
    "no_seed": replace(BASE, environment_seed=False, readout_layers=2, energy_hidden=(8, 0)),
    "grid_mlp": replace(BASE, ffn_grid_operation="mlp", message_grid=True, readout="product"),
    "schedules": replace(BASE, degree_schedule=(3, 2), order_schedule=(2, 1), radial_hidden=(0, 9)),
    "degree_0": replace(BASE, max_degree=0, max_order=0, bias=True),
}
"""The option sets and those that only change what a file holds."""


def random_model(config: DPA4Config, seed: int = 0) -> DPA4:
    """A float64 network in which no tensor is zero or constant, so that no branch is asleep."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DPA4(config, dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(_awake(name, parameter))
            model.energy_shift.copy_(torch.randn_like(model.energy_shift))
    return model


def random_potential(config: DPA4Config, seed: int = 0, dtype: str = "float64") -> Potential:
    """`random_model` as a Potential."""
    return Potential(random_model(config, seed), dtype=dtype)


def _awake(name: str, value: Tensor) -> Tensor:
    noise = torch.randn_like(value)
    if "strength_log" in name:
        return log(0.5) + 0.2 * noise
    if bool((value == 0).all()):
        fan_in = value.shape[-2] if value.ndim > 1 else 4
        return noise / fan_in**0.5
    if bool(((value - 1e-3).abs() < 1e-9).all()):  # layer scales
        return 0.5 + 0.2 * noise
    if bool((value == value.flatten()[0]).all()):
        return value * (1 + 0.3 * noise)
    return value * (1 + 0.05 * noise)


def molecule() -> Batch:
    """Six atoms without a symmetry; edges along +z and -z, and a pair inside the ZBL window."""
    positions = [
        [0.0, 0.0, 0.0],
        [0.0, 0.0, 1.3],
        [0.0, 0.0, -1.9],
        [1.7, 0.4, 0.3],
        [-0.6, 2.1, -0.8],
        [2.9, -1.2, 1.6],
    ]
    return Batch.single(torch.tensor(positions), torch.tensor([14, 6, 8, 6, 14, 8]))


def crystal() -> Batch:
    """Four atoms in a skewed left-handed cell that is narrower than the cutoff.

    A pair stands inside the ZBL window; no pair is within 0.06 Å of the cutoff.
    """
    cell = torch.tensor([[3.9, 0.2, 0.1], [1.7, 0.3, 3.6], [-0.9, 4.3, 0.4]], dtype=torch.float64)
    fractions = [[0.56, 0.48, 0.9], [0.733, 0.543, 0.684], [0.18, 0.67, 0.36], [0.33, 0.94, 0.2]]
    positions = torch.tensor(fractions, dtype=torch.float64) @ cell
    return Batch.single(positions, torch.tensor([14, 6, 8, 6]), cell, pbc=True)


def dimer(r: float, numbers: tuple[int, int] = (14, 6)) -> Batch:
    """Two atoms r Å apart along no axis."""
    unit = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    return Batch.single(torch.stack([0 * unit, r * unit]), torch.tensor(numbers))


def rotation_matrix(seed: int = 0) -> Tensor:
    """A random proper rotation, float64."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return torch.from_numpy(q * np.linalg.det(q))


def rotated(batch: Batch, matrix: Tensor) -> Batch:
    """The batch with every vector v replaced by R v."""
    return batch.with_geometry(batch.positions @ matrix.T, batch.cell @ matrix.T)


def wigner(max_degree: int, matrix: Tensor) -> Tensor:
    """D with D Y(p) = Y(R p) by fitting to random points, independent of the frame code."""
    harmonics = RotationRows(max_degree, 0).harmonics
    points = torch.from_numpy(np.random.default_rng(7).normal(size=(8 * (max_degree + 1) ** 2, 3)))
    points = points / points.norm(dim=1, keepdim=True)
    fitted = torch.linalg.lstsq(harmonics(points), harmonics(points @ matrix.T)).solution
    return fitted.T


def largest(difference: Tensor) -> float:
    """Largest absolute entry."""
    return float(difference.detach().abs().max()) if difference.numel() else 0.0


def edge_features(model: DPA4, batch: Batch, vector: Tensor | None = None) -> EdgeFeatures:
    """What the blocks of a float64 model know of the batch's edges; autograd's path."""
    edges = neighbors(batch, model.config.cutoff)
    vector = edges.vector if vector is None else vector
    species = torch.tensor([NUMBERS.index(z) for z in batch.atomic_numbers.tolist()])
    length = ((vector * vector).sum(1) + model.config.epsilon**2).sqrt()
    found, _, _ = model._edge_features(species, edges, vector, length, None, None)
    return replace(found, offsets=None)


def node_features(n_atoms: int, max_degree: int, channels: int, seed: int = 0) -> Tensor:
    """Random (atom, lm, channel)."""
    generator = torch.Generator().manual_seed(seed)
    shape = n_atoms, (max_degree + 1) ** 2, channels
    return torch.randn(shape, generator=generator, dtype=torch.float64)
