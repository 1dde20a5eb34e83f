"""DFT-D3(BJ): the London dispersion that semilocal functionals lack, added to any potential.

    E = -1/2 sum_ij  s6 C6_ij / (r^6 + f^6) + s8 C8_ij / (r^8 + f^8)      f = a1 sqrt(C8/C6) + a2

(Grimme, Ehrlich and Goerigk, J. Comput. Chem. 32, 1456), without the three-body term.  The kernels
are nvalchemi-toolkit-ops'; the reference systems are in d3.safetensors, see
workflows/d3_reference.py.  The kernels count in float32, each atom by itself; sums over atoms are
float64 in the order of the atoms, so that no bit depends on the company.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from dpa4sim.batch import Batch, dot, sum_over_atoms
from dpa4sim.composite import Sum
from dpa4sim.edges import Edges, estimated_edges, neighbors
from dpa4sim.errors import ConfigError
from dpa4sim.potential import EnergyModel, Prediction, without
from dpa4sim.units import BOHR_A, HARTREE_EV

CUTOFF_A = 60.0 * BOHR_A
"""Pairs that are farther apart are left out, as in simple-dftd3."""

PAIRS_AT_ONCE = 2_000_000
"""Systems are evaluated in groups of about so many pairs; one takes about 150 bytes."""

REFERENCE = Path(__file__).parent / "d3.safetensors"

DAMPING = {
    "b3lyp": (0.3981, 4.4211, 1.9889),
    "blyp": (0.4298, 4.2359, 2.6996),
    "bp": (0.3946, 4.8516, 3.2822),
    "hse06": (0.383, 5.685, 2.310),
    "pbe": (0.4289, 4.4407, 0.7875),
    "pbe0": (0.4145, 4.8593, 1.2177),
    "pbesol": (0.4466, 6.1742, 2.9491),
    "r2scan": (0.49484001, 5.73083694, 0.78981345),
    "revpbe": (0.5238, 3.5016, 2.3550),
    "rpbe": (0.1820, 4.0094, 0.8318),
    "scan": (0.5380, 5.4200, 0.0),
    "tpss": (0.4535, 4.4752, 1.9435),
}
"""a1, a2 in Bohr, and s8 of functionals; s6 is 1."""


class D3:
    """The D3(BJ) correction of a functional, an EnergyModel by itself or a term of a sum.

    Args:
        functional: one of `DAMPING`, or the numbers (a1, a2 in Bohr, s8).
        cutoff: longest distance of two atoms, Å; also for coordination numbers.
        device: where to compute.

    Raises:
        ConfigError: another functional, or no usable cutoff.
    """

    def __init__(
        self,
        functional: str | Sequence[float] = "pbe",
        *,
        cutoff: float = CUTOFF_A,
        device: str | torch.device = "cpu",
    ) -> None:
        if not cutoff > 0:
            raise ConfigError(f"cutoff={cutoff}. Give a positive distance in Å.")
        self.a1, self.a2, self.s8 = _damping(functional)
        self.cutoff, self.device = float(cutoff), torch.device(device)
        self._reference = {name: value.to(self.device) for name, value in _reference().items()}

    @property
    def known_elements(self) -> frozenset[int]:
        """Atomic numbers that have reference systems."""
        return frozenset(range(1, len(self._reference["r4r2"])))

    @property
    def fingerprint(self) -> str:
        """What tells two corrections apart."""
        return f"D3({self.a1:g}, {self.a2:g}, {self.s8:g}, {self.cutoff:.9g})"

    def __add__(self, other: EnergyModel) -> Sum:
        """The sum of two models."""
        return Sum([self, other])

    def __call__(self, batch: Batch) -> Prediction:
        """Energy, forces and stress of a trusted batch on this device."""
        found = [self._evaluate(part) for part in _groups(batch, self.cutoff)]
        return Prediction(
            energy=torch.cat([each.energy for each in found]),
            forces=torch.cat([each.forces for each in found]),
            stress=torch.cat([each.stress for each in found]),
            atomic_energies=torch.cat([each.atomic_energies for each in found]),
        )

    def _evaluate(self, batch: Batch) -> Prediction:
        from nvalchemiops.torch.interactions.dispersion import dftd3

        edges = _far_first(neighbors(batch, self.cutoff))
        cell = torch.where(batch.pbc[:, :, None], batch.cell, 0.0)
        pair = torch.stack([edges.center, edges.neighbor]).int()
        atoms = torch.arange(len(batch.positions), dtype=torch.int32, device=batch.device)
        energies, forces, _, virial = dftd3(
            positions=batch.positions / BOHR_A,
            numbers=batch.atomic_numbers.int(),
            a1=self.a1,
            a2=self.a2,
            s8=self.s8,
            d3_params=self._reference,
            neighbor_list=pair,
            neighbor_ptr=edges.row_ptr.int(),
            unit_shifts=_images(batch, cell, edges),
            cell=(cell / BOHR_A)[batch.system_idx],
            batch_idx=atoms,  # a sum for each atom
            compute_virial=True,
            num_systems=len(atoms),
        )
        atomic = HARTREE_EV * energies.double()
        strain = -HARTREE_EV * sum_over_atoms(virial.double(), batch)
        volume = torch.where(batch.volume > 0, batch.volume, torch.nan)[:, None, None]
        prediction = Prediction(
            energy=sum_over_atoms(atomic, batch),
            forces=HARTREE_EV / BOHR_A * forces.double(),
            stress=0.5 * (strain + strain.transpose(1, 2)) / volume,
            atomic_energies=atomic,
        )
        return prediction if edges.searched is None else without(prediction, batch, ~edges.searched)


def d3(
    functional: str | Sequence[float] = "pbe",
    *,
    cutoff: float = CUTOFF_A,
    device: str | torch.device = "cpu",
) -> D3:
    """The D3(BJ) correction of a functional: `potential + dpa4sim.d3("pbe")`.

    Args:
        functional: such as "pbe", or the numbers (a1, a2 in Bohr, s8).
        cutoff: longest distance of two atoms, Å.
        device: where to compute; that of the potential.

    Raises:
        ConfigError: another functional, or no usable cutoff.
    """
    return D3(functional, cutoff=cutoff, device=device)


def _damping(functional: str | Sequence[float]) -> tuple[float, float, float]:
    if not isinstance(functional, str):
        if len(functional) != 3:
            raise ConfigError(
                f"{len(functional)} numbers do not damp. Give three: a1, a2 in Bohr, and s8."
            )
        a1, a2, s8 = (float(value) for value in functional)
        return a1, a2, s8
    if functional.lower() not in DAMPING:
        raise ConfigError(
            f"D3 has no numbers for the functional {functional!r}. It has "
            f"{', '.join(DAMPING)}; or give (a1, a2 in Bohr, s8)."
        )
    return DAMPING[functional.lower()]


@cache
def _reference() -> dict[str, Tensor]:
    """The reference systems by the names and in the shapes that the kernels want."""
    packed = load_file(REFERENCE)
    cn = packed["cn"]
    n, count = cn.shape
    c6 = cn.new_zeros(n, n, count, count)
    row, column = torch.triu_indices(n, n)
    c6[row, column] = packed["c6"]
    c6[column, row] = packed["c6"].transpose(1, 2)
    return {
        "rcov": packed["covalent_radii"],
        "r4r2": packed["r4r2"],
        "c6ab": c6,
        "cn_ref": cn[:, None, :, None].expand(n, n, count, count).contiguous(),
    }


def _groups(batch: Batch, cutoff: float) -> Iterator[Batch]:
    """The systems in order, as many together as have `PAIRS_AT_ONCE`, one at least."""
    pairs = estimated_edges(batch, cutoff).nan_to_num(0.0, posinf=0.0).tolist()
    if sum(pairs) <= PAIRS_AT_ONCE:
        yield batch
        return
    together: list[int] = []
    for system, count in enumerate(pairs):
        if together and sum(pairs[s] for s in together) + count > PAIRS_AT_ONCE:
            yield batch.select(together)
            together = []
        together.append(system)
    yield batch.select(together)


def _far_first(edges: Edges) -> Edges:
    """The edges of each center from the longest to the shortest.

    A float32 sum that begins with the near neighbours loses each of the thousands of far ones:
    their shares of a coordination number of 3 are 1e-7.  That would cost 4e-5 of graphite's energy.
    """
    order = torch.argsort(dot(edges.vector, edges.vector), descending=True, stable=True)
    order = order[torch.argsort(edges.center[order], stable=True)]
    rows = (edges.center, edges.neighbor, edges.vector)
    center, neighbor, vector = (row.index_select(0, order) for row in rows)
    return replace(edges, center=center, neighbor=neighbor, vector=vector)


def _images(batch: Batch, cell: Float[Tensor, "system 3 3"], edges: Edges) -> Int[Tensor, "edge 3"]:
    """The cell in which each edge ends, counted from its center's, along the periodic rows."""
    ends = batch.positions[edges.neighbor] - batch.positions[edges.center]
    inverse = torch.linalg.pinv(cell.nan_to_num(0.0, 0.0, 0.0))
    shift, system = edges.vector - ends, batch.system_idx[edges.center]
    along = [dot(shift, inverse[:, :, k].index_select(0, system)) for k in range(3)]
    return torch.stack(along, 1).round().int()
