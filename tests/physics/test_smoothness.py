"""Energies are three times differentiable where edges end and where the ZBL window ends.

A pair is swept through the seam.  The derivatives come from autograd, so they are exact; what is
tested is that the difference of the two sides shrinks with the distance from the seam.
"""

from math import comb

import pytest
import torch
from models import CUTOFF, OPTION_SETS, dimer, random_model, random_potential
from torch import Tensor

from dpa4sim.edges import Edges
from dpa4sim.model import DPA4
from dpa4sim.model.basis import envelope
from dpa4sim.model.zbl import Bridge, repulsion

NEAR, NEARER = 1e-4, 1e-5
"""Å from the seam."""

CONTINUOUS = 0.2
"""The jump shrinks by NEARER / NEAR = 0.1 or faster; a true discontinuity keeps it, ratio 1."""

NOISE = 1e-9
"""Rounding of third derivatives, per largest derivative of that order (1e-12 is what we see)."""

SETS = pytest.mark.parametrize("name", OPTION_SETS)
UNIT = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
SECOND = torch.tensor([-0.5, 1.5, 0.6], dtype=torch.float64)
INNER, OUTER = 0.8, 1.6  # of the option set "zbl"


def smooth_model(name: str) -> DPA4:
    """Without the hand-written kernel, which gives first derivatives only."""
    model = random_model(OPTION_SETS[name])
    model.hand_written = False
    return model


def trimer_energy(model: DPA4, r: Tensor, repelling: bool = True) -> Tensor:
    """A silicon and an oxygen r Å apart, a carbon beside; every pair is listed at any distance."""
    positions = torch.stack([0 * r * UNIT, SECOND + 0 * r, r * UNIT])
    center, neighbor = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
    vector = positions[neighbor] - positions[center]
    species = torch.tensor([0, 1, 2])
    energy, _ = model(species, Edges(center, neighbor, vector, torch.tensor([0, 2, 4, 6])))
    total = energy.sum()
    if not repelling:
        charge = torch.tensor([14.0, 6.0, 8.0], dtype=torch.float64)
        length = vector.norm(dim=1)
        pair = 0.5 * repulsion(length, charge[center], charge[neighbor])
        total = total - torch.where(length <= CUTOFF, pair, 0.0).sum()
    return total


def dimer_energy(model: DPA4, r: Tensor) -> Tensor:
    vector = torch.stack([r * UNIT, -r * UNIT])
    edges = Edges(torch.tensor([0, 1]), torch.tensor([1, 0]), vector, torch.tensor([0, 1, 2]))
    return model(torch.tensor([0, 1]), edges)[0].sum()


def derivatives(energy, r: float, order: int = 3) -> Tensor:
    """E and its derivatives at r."""
    x = torch.tensor(r, dtype=torch.float64, requires_grad=True)
    values = [energy(x)]
    for _ in range(order):
        values.append(torch.autograd.grad(values[-1], x, create_graph=True)[0])
    return torch.stack(values).detach()


def jumps(energy, seam: float) -> tuple[Tensor, Tensor, Tensor]:
    """|d^k E(seam - d) - d^k E(seam + d)| for both distances d, and the size of d^k E."""
    sides = [[derivatives(energy, seam + s * d) for s in (-1, 1)] for d in (NEAR, NEARER)]
    far, near = ((below - above).abs() for below, above in sides)
    return far, near, sides[0][0].abs() + sides[0][1].abs()


def check_continuous(energy, seam: float) -> None:
    far, near, size = jumps(energy, seam)
    assert bool((near <= CONTINUOUS * far + NOISE * size).all()), (far, near)


@SETS
def test_three_derivatives_at_the_cutoff(name):
    """The learned part; the repulsion just ends, see below."""
    model = smooth_model(name)
    energy = lambda r: trimer_energy(model, r, repelling=name != "zbl")
    far, _, _ = jumps(energy, CUTOFF)
    assert far[3] > 0  # the sweep is seen
    check_continuous(energy, CUTOFF)


@pytest.mark.parametrize("seam", [INNER, OUTER])
def test_three_derivatives_at_the_ends_of_the_window(seam):
    """The learned part, where the steep repulsion, analytic there, would drown it."""
    model = smooth_model("zbl")
    check_continuous(lambda r: trimer_energy(model, r, repelling=False), seam)


def test_repulsion_ends_with_a_small_step_at_the_cutoff():
    """As in the reference, Eq. 40 is not switched off: 13 meV for Si-O at 4.5 Å."""
    model = smooth_model("zbl")
    gap = 1e-6  # float32 of 4.5 Å plus this is another number
    below, above = (
        float(trimer_energy(model, torch.tensor(CUTOFF + side * gap).double()).detach())
        for side in (-1, 1)
    )
    charge = torch.tensor([14.0]).double(), torch.tensor([8.0]).double()
    step = float(repulsion(torch.tensor([CUTOFF]).double(), *charge))
    assert below - above == pytest.approx(step, abs=1e-6)
    assert 5e-3 < step < 2e-2


def c2_envelope(r: Tensor, cutoff: float, exponent: int) -> Tensor:
    """The envelope with u^3 for u^4: twice differentiable at the cutoff, not three times."""
    u = (1 - r / cutoff).clamp(0, 1)
    return u**3 * sum(comb(k + 2, 2) * (1 - u) ** k for k in range(exponent))


def test_the_check_sees_a_c2_envelope(monkeypatch):
    monkeypatch.setattr("dpa4sim.model.dpa4.envelope", c2_envelope)
    model = smooth_model("scatter")
    far, near, _ = jumps(lambda r: trimer_energy(model, r), CUTOFF)
    assert bool((near[:3] <= CONTINUOUS * far[:3] + NOISE).all())
    assert near[3] > 0.9 * far[3]
    with pytest.raises(AssertionError):
        check_continuous(lambda r: trimer_energy(model, r), CUTOFF)


@pytest.mark.parametrize("seam", [INNER, OUTER])
def test_the_check_sees_a_c2_window(monkeypatch, seam):
    def clamp(self: Bridge, r: Tensor) -> Tensor:
        t = ((r - self.inner) / (self.outer - self.inner)).clamp(0, 1)
        h = t**3 * (6 - 8 * t + 3 * t * t)  # h'(1) = 1, h''(0) = h''(1) = 0
        return torch.where(r < self.outer, self.inner + (self.outer - self.inner) * h, r)

    monkeypatch.setattr(Bridge, "clamp", clamp)
    model = smooth_model("zbl")
    with pytest.raises(AssertionError):
        check_continuous(lambda r: trimer_energy(model, r, repelling=False), seam)


@pytest.mark.parametrize("exponent", [1, 2, 5, 7])
def test_envelope_itself(exponent):
    """1 at r = 0 and three derivatives of 0 at the cutoff; the fourth is not."""
    energy = lambda r: envelope(r[None], CUTOFF, exponent)[0]
    assert float(energy(torch.tensor(0.0).double())) == 1
    at_cutoff = derivatives(energy, CUTOFF * (1 - 1e-9), order=4).abs()
    assert bool((at_cutoff[:4] < 1e-5).all())
    assert at_cutoff[4] > 0.01
    assert not derivatives(energy, CUTOFF * 1.001, order=4).any()


@pytest.mark.parametrize(
    "name", [name for name in OPTION_SETS if name not in ("version_1_0", "zbl")]
)
def test_dimer_vanishes_smoothly(name):
    """From version 1.1 on: energy and three derivatives fade to those of two lone atoms."""
    model = smooth_model(name)
    lone = float(dimer_energy(model, torch.tensor(2 * CUTOFF).double()).detach())
    steps = [
        derivatives(lambda r: dimer_energy(model, r), CUTOFF - d) for d in (0.02, 0.002, 0.0002)
    ]
    offsets = torch.stack(steps)
    offsets[:, 0] -= lone
    assert bool((offsets[1:, 1:].abs() <= CONTINUOUS * offsets[:-1, 1:].abs() + 1e-12).all())
    assert abs(offsets[1, 0]) < 1e-6
    assert abs(offsets[2, 0]) < 1e-10


def test_dimer_of_version_1_0_ends_in_a_cliff():
    """Why version 1.1 changed it: n_i s(r) stays near 1 until s falls below sqrt(epsilon)."""
    near_the_end = 0.97 * CUTOFF
    offset = {}
    for name in ("neo", "version_1_0"):
        potential = random_potential(OPTION_SETS[name])
        energy = [float(potential(dimer(r)).energy[0]) for r in (near_the_end, 2 * CUTOFF)]
        offset[name] = abs(energy[0] - energy[1])
    assert offset["neo"] < 1e-4 < 1e-2 < offset["version_1_0"]


@pytest.mark.parametrize("name", [name for name in OPTION_SETS if name != "zbl"])
def test_energy_through_the_neighbour_list_is_continuous(name):
    """An edge that enters the list changes nothing by entering."""
    potential = random_potential(OPTION_SETS[name])
    below, above = (potential(dimer(CUTOFF + side * 1e-7)) for side in (-1, 1))
    assert float((below.energy - above.energy).abs()) < 1e-11
    assert float((below.forces - above.forces).abs().max()) < 1e-9
