"""The model-Hessian L-BFGS of one system, written a second time: dense, in numpy, with loops."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from dpa4sim.batch import Batch
from dpa4sim.edges import neighbors
from dpa4sim.potential import EnergyModel
from dpa4sim.relax.hessian import covalent_radii

STRAINS = np.zeros((6, 3, 3))
for _k, (_i, _j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
    STRAINS[_k, _i, _j] = STRAINS[_k, _j, _i] = 1.0 if _i == _j else 0.5**0.5


def dense_hessian(
    batch: Batch, movable: np.ndarray, projector: np.ndarray, cutoff: float
) -> np.ndarray:
    """P from its definition: the stretch of every bond as a linear function of (u, q), squared."""
    edges, n = neighbors(batch, cutoff), len(batch.positions)
    radii = covalent_radii(batch.atomic_numbers).numpy()
    center, neighbor, bond = edges.center.numpy(), edges.neighbor.numpy(), edges.vector.numpy()
    d, reach = np.linalg.norm(bond, axis=1), radii[center] + radii[neighbor]
    kept = d < 1.5 * reach
    center, neighbor, bond, d, reach = (x[kept] for x in (center, neighbor, bond, d, reach))
    k = 5.0 * np.minimum(np.exp(-3.0 * (d / reach - 1)), 6.0)
    along = bond[:, :, None] * bond[:, None] / (d * d)[:, None, None]
    spring = 0.5 * k[:, None, None] * (0.9 * along + 0.1 * np.eye(3))
    stretch = np.zeros((len(k), 3, 3 * n + 6))
    for bond_number, (i, j) in enumerate(zip(center, neighbor, strict=True)):
        stretch[bond_number, :, 3 * j : 3 * j + 3] += np.eye(3)
        stretch[bond_number, :, 3 * i : 3 * i + 3] -= np.eye(3)
    stretch[:, :, -6:] = np.einsum("kab,eb->eak", STRAINS, bond)
    total = stretch.reshape(-1, 3 * n + 6).T @ (spring @ stretch).reshape(-1, 3 * n + 6)
    volume = abs(np.linalg.det(batch.cell[0].numpy()))
    total += np.diag([5.0] * (3 * n) + [0.1 * volume] * 6)
    keep = np.zeros_like(total)
    keep[: 3 * n, : 3 * n] = np.diag(np.repeat(movable, 3))
    keep[-6:, -6:] = projector
    return keep @ total @ keep + np.eye(len(total)) - keep


@dataclass
class DenseLbfgs:
    """One system on its way down.

    Args:
        pressure: eV/Å^3.
        movable: 0 or 1 per atom.
        projector: on the strains that are allowed.
    """

    batch: Batch
    model: EnergyModel
    pressure: float
    movable: np.ndarray
    projector: np.ndarray
    memory: int = 20
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    gamma: float = 1.0
    radius: float = 0.2
    forgets: int = 0

    def __post_init__(self) -> None:
        self.enthalpy, self.gradient = self.ask(self.batch)

    def ask(self, batch: Batch) -> tuple[float, np.ndarray]:
        """Enthalpy in eV and its gradient by (u, q)."""
        prediction = self.model(batch)
        volume = abs(np.linalg.det(batch.cell[0].numpy()))
        forces = prediction.forces.numpy() * self.movable[:, None]
        work = np.zeros(6)
        if self.projector.any():
            tension = prediction.stress[0].numpy() + self.pressure * np.eye(3)
            work = self.projector @ np.einsum("kab,ab->k", STRAINS, -volume * tension)
        return float(prediction.energy) + self.pressure * volume, -np.append(forces, work)

    def step(self) -> None:
        """Plan, move, learn."""
        hessian = dense_hessian(self.batch, self.movable, self.projector, self.model.cutoff)
        factor = scipy.linalg.cho_factor(hessian)
        planned, limited = self.bounded(self.direction(lambda x: scipy.linalg.cho_solve(factor, x)))
        stretch = scipy.linalg.expm(np.einsum("k,kab->ab", planned[-6:], STRAINS))
        positions = (self.batch.positions.numpy() + planned[:-6].reshape(-1, 3)) @ stretch
        cell = self.batch.cell.numpy() @ stretch
        tensor = self.batch.positions.new_tensor
        self.batch = self.batch.with_geometry(tensor(positions), tensor(cell))
        self.learn(planned, limited, *self.ask(self.batch))

    def direction(self, solve) -> np.ndarray:
        """The two loops, newest pair first and then last."""
        rest, shares = self.gradient.copy(), []
        for s, y in self.pairs:
            shares.append((s @ rest) / (s @ y))
            rest -= shares[-1] * y
        if self.pairs:
            s, y = self.pairs[0]
            self.gamma = float(np.clip((s @ y) / (y @ solve(y)), 0.1, 10.0))
        z = self.gamma * solve(rest)
        for (s, y), share in reversed(list(zip(self.pairs, shares, strict=True))):
            z += (share - (y @ z) / (s @ y)) * s
        if -z @ self.gradient < -1e-10 * np.linalg.norm(z) * np.linalg.norm(self.gradient):
            return -z
        self.pairs, self.forgets = [], self.forgets + 1
        return -self.gamma * solve(self.gradient)

    def bounded(self, planned: np.ndarray) -> tuple[np.ndarray, bool]:
        """The whole step shortened to the trust radius."""
        farthest = np.linalg.norm(planned[:-6].reshape(-1, 3), axis=1).max()
        strain = np.linalg.norm(planned[-6:])
        factor = min(
            1.0, self.radius / max(farthest, 1e-12), 0.5 * self.radius / max(strain, 1e-12)
        )
        return factor * planned, factor < 1

    def learn(self, step: np.ndarray, limited: bool, enthalpy: float, gradient: np.ndarray) -> None:
        """Remember the step, adapt the trust radius."""
        y, rise = gradient - self.gradient, enthalpy - self.enthalpy
        old, new = self.gradient @ step, gradient @ step
        if step @ y > 1e-6 * np.linalg.norm(step) * np.linalg.norm(y):
            self.pairs = [(step, y), *self.pairs][: self.memory]
        else:
            self.pairs, self.forgets = [], self.forgets + 1
        if rise > 1e-5 * len(self.batch.positions) and new > 0:
            self.radius *= 0.5
        elif rise < 0 and limited and new < 0:
            self.radius *= 1.5
        elif new > 0 and new > -0.9 * old:
            self.radius *= 0.6
        self.radius = float(np.clip(self.radius, 0.02, 0.4))
        self.enthalpy, self.gradient = enthalpy, gradient
