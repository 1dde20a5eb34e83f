"""Push carbon into silicon: the dimer scan of the paper's Figure 4, energies and forces.

    python workflows/dimer.py [--model FILE] [--out docs/dimer.png]

Without a model, a network of a few thousand weights is first taught the well of a C-Si molecule
from 1.3 Å outwards (a Morse curve, some 30 s on one core).  Below that it has seen nothing: there
the bridging window hands over to the analytic ZBL repulsion.  A network taught the same without
ZBL, and then spliced to it by switching energies in the same window, is drawn beside it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.config import DPA4Config
from dpa4sim.edges import Edges
from dpa4sim.errors import ModelError
from dpa4sim.model import DPA4
from dpa4sim.model.zbl import Bridge, repulsion
from dpa4sim.plots import DPI, FAINT, GRID, INK, PALETTE
from dpa4sim.potential import Potential, load

SPECIES, CHARGES = ("C", "Si"), (6.0, 14.0)
WELL_EV, WELL_A, WELL_PER_A = 4.6, 1.72, 1.9
"""Depth, length and stiffness of the Morse curve that stands in for data, about those of C-Si."""

FIRST_SEEN_A = 1.3
STEPS = 500


@dataclass(frozen=True)
class Scan:
    """A dimer at many distances.

    Args:
        r: Å.
        energy: eV, zero for the separated atoms.
        force: eV/Å, positive where the atoms repel each other.
    """

    r: np.ndarray
    energy: np.ndarray
    force: np.ndarray


def main(words: list[str] | None = None) -> int:
    """Teach or load, scan, draw."""
    args = _arguments(words)
    potential = load(args.model, dtype="float64") if args.model else taught(args.steps)
    bridge = potential.model.bridge
    if bridge is None or not {6, 14} <= potential.known_elements:
        raise ModelError(f"{args.model} cannot be scanned: it needs a ZBL window, C and Si.")
    r = np.linspace(0.5 * bridge.inner, 2.6, 241)
    scans = {"DPA4 with its window": scan(potential, r), "ZBL": scan_zbl(r)}
    if not args.model:
        scans["switched energies"] = spliced(taught(args.steps, window=False), bridge, r)
    draw(scans, bridge, args.out)
    worst = np.abs(scans["DPA4 with its window"].force - scans["ZBL"].force)[r < bridge.inner].max()
    print(f"largest |F - F_ZBL| below {bridge.inner} Å: {worst:.1e} eV/Å; drawn to {args.out}")
    return 0


def taught(steps: int, window: bool = True) -> Potential:
    """A small network whose dimer follows the Morse curve beyond `FIRST_SEEN_A`."""
    torch.manual_seed(0)
    config = DPA4Config(
        species=SPECIES,
        cutoff=5.0,
        channels=16,
        n_blocks=1,
        max_degree=2,
        so2_layers=2,
        edge_norm=False,
        zbl_inner=0.6 if window else None,
        zbl_outer=1.2 if window else None,
    )
    model = DPA4(config, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        r = FIRST_SEEN_A + (config.cutoff - FIRST_SEEN_A) * torch.rand(48).double()
        r.requires_grad_(True)
        error = _dimer_energies(model, r) - _morse(r)
        (force_error,) = torch.autograd.grad(error.sum(), r, create_graph=True)
        loss = error.square().mean() + force_error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return Potential(model, dtype="float64")


def scan(potential: Potential, r: np.ndarray) -> Scan:
    """Energies and forces of the dimer, relative to the separated atoms, in one batch."""
    numbers = torch.tensor([6, 14])
    far = 2 * potential.cutoff

    def pair(distance: float) -> Batch:
        return Batch.single(torch.tensor([[0.0, 0, 0], [0, 0, distance]]).double(), numbers)

    found = potential(Batch.concatenate([pair(distance) for distance in [*r, far]]))
    energy = found.energy.numpy()
    force = found.forces.numpy()[1::2, 2]
    return Scan(r, energy[:-1] - energy[-1], force[:-1])


def scan_zbl(r: np.ndarray) -> Scan:
    """The analytic repulsion alone."""
    distance = torch.tensor(r, requires_grad=True)
    energy = repulsion(distance, *(torch.full_like(distance, charge) for charge in CHARGES))
    (slope,) = torch.autograd.grad(energy.sum(), distance)
    return Scan(r, energy.detach().numpy(), -slope.numpy())


def spliced(potential: Potential, bridge: Bridge, r: np.ndarray) -> Scan:
    """W E_network + (1 - w) E_ZBL: how a pair correction is usually attached.  Eq. 42"""
    network, analytic = scan(potential, r), scan_zbl(r)
    distance = torch.tensor(r, requires_grad=True)
    weight = bridge.amplitude(distance)
    (slope,) = torch.autograd.grad(weight.sum(), distance)
    w, dw = weight.detach().numpy(), slope.numpy()
    energy = w * network.energy + (1 - w) * analytic.energy
    force = w * network.force + (1 - w) * analytic.force
    return Scan(r, energy, force - dw * (network.energy - analytic.energy))


def draw(scans: dict[str, Scan], bridge: Bridge, path: Path) -> None:
    """Energy and force over distance, the window shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), dpi=DPI, layout="constrained")
    panels = zip(figure.subplots(1, 2), ("energy", "force"), ("eV", "eV/Å"), (60, 250), strict=True)
    styles = dict(zip(scans, ((PALETTE[0], "-"), (INK, "--"), (PALETTE[1], "-")), strict=False))
    for axes, quantity, unit, top in panels:
        axes.axvspan(bridge.inner, bridge.outer, color=GRID, label="bridging window")
        axes.axhline(0, color=FAINT, linewidth=0.6)
        for name, one in scans.items():
            color, dash = styles[name]
            width = 2.2 if name.startswith("DPA4") else 1.4
            axes.plot(one.r, getattr(one, quantity), dash, color=color, linewidth=width, label=name)
        axes.set(xlabel="C-Si distance (Å)", ylabel=f"{quantity} ({unit})")
        axes.set(xlim=(scans["ZBL"].r[0], scans["ZBL"].r[-1]), ylim=(-0.15 * top, top))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(color=FAINT, labelcolor=INK)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _morse(r: Tensor) -> Tensor:
    reach = torch.exp(-WELL_PER_A * (r - WELL_A))
    return WELL_EV * (reach * reach - 2 * reach)


def _dimer_energies(model: DPA4, r: Tensor) -> Tensor:
    """Energy of each dimer, all in one graph."""
    n = len(r)
    center = torch.arange(2 * n)
    vector = torch.stack([0 * r, 0 * r, r], 1).repeat_interleave(2, 0)
    vector = vector * torch.tensor([1.0, -1.0]).double().repeat(n)[:, None]
    edges = Edges(center, center ^ 1, vector, torch.arange(2 * n + 1))
    atomic, _ = model(torch.tensor([0, 1]).repeat(n), edges)
    return atomic.reshape(n, 2).sum(1)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model with C, Si and a ZBL window; default: teach one")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of teaching")
    parser.add_argument("--out", type=Path, default=Path("docs/dimer.png"))
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
