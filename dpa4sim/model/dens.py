"""Direct forces and denoising: heads that read vectors from the features, and forces as features.

Experimental.  A network with these heads ("dens": denoising non-equilibrium structures, arXiv
2403.09549) learns two tasks at once.  On atoms at their place it predicts the force.  Other atoms
are displaced by Gaussian noise; there the network is told the force that the structure had before
and predicts the displacement.  The paper of DPA4 has no such head; the reference has.

| here | is |
|---|---|
| `ForceEmbedding` | forces f before the displacement -> first features: Y_lm of their direction |
| `VectorHead`     | features of degree 1 -> a vector per atom |
| `DirectHead`     | energy of the scalars, force and displacement of the vectors |

Handedness.  The network's features of degree 1 are components (y, z, -x).  DeePMD-kit 3.2.0 reads
and writes them as (-y, z, -x): its forces are those of a correct head mirrored in the plane y = 0,
so they do not rotate with the structure.  "mirrored" does the same for its checkpoints; "direct"
has the right sign.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dpa4sim.config import DPA4Config
from dpa4sim.model.frames import RotationRows, degree_of_lm
from dpa4sim.model.linear import DegreeLinear
from dpa4sim.model.readout import EnergyHead

COMPONENTS = ((2, -1.0), (0, 1.0), (1, 1.0))
"""Row among those of degree 1, and sign, of x, y and z."""


class NoisyForces(NamedTuple):
    """Forces of a structure before some of its atoms were displaced, in eV/Å.

    Args:
        forces: of all atoms.
        noisy: which atoms were displaced; the network is told nothing of the others.
    """

    forces: Float[Tensor, "atom 3"]
    noisy: Bool[Tensor, " atom"]


class DirectOutput(NamedTuple):
    """What the heads say.

    Args:
        energies: of the atoms in eV, float64.
        forces: eV/Å, float64.
        scaled_energies: learned part of the energies in units of their spread.
        scaled_forces: in units of their spread.
        noise: displacement over its standard deviation; of use where an atom was displaced.
        descriptor: the scalars that the energy is read from.
    """

    energies: Float[Tensor, " atom"]
    forces: Float[Tensor, "atom 3"]
    scaled_energies: Float[Tensor, " atom"]
    scaled_forces: Float[Tensor, "atom 3"]
    noise: Float[Tensor, "atom 3"]
    descriptor: Float[Tensor, "atom channel"]


class ForceEmbedding(nn.Module):
    """Features of forces, zero for atoms that were not displaced.

    h[lm, c] = sqrt((2l + 1) / 4 pi)  |f| / sqrt(3)  Y_lm(f / |f|)  W_l[c]  (+ b[c] for l = 0)
    """

    scale: Tensor

    def __init__(self, max_degree: int, channels: int, mirrored: bool, epsilon: float) -> None:
        super().__init__()
        self.mirrored, self.epsilon = mirrored, epsilon
        self.linear = DegreeLinear(max_degree, 1, channels, bias=True)
        self.rotation = RotationRows(max_degree, 0)
        degrees = torch.tensor(degree_of_lm(max_degree), dtype=torch.float64)
        scale = ((2 * degrees + 1) / (12 * pi)).sqrt()
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, given: NoisyForces) -> Float[Tensor, "atom lm channel"]:
        """Features to add to the first ones."""
        forces = given.forces.to(self.scale)
        forces = mirror(forces) if self.mirrored else forces
        length = torch.linalg.vector_norm(forces, dim=1, keepdim=True)
        harmonics = self.rotation.harmonics(forces / length.clamp(min=self.epsilon))
        features = self.linear((length * self.scale * harmonics)[..., None])
        return features * given.noisy[:, None, None]


class VectorHead(nn.Module):
    """A vector per atom: v = sqrt(4 pi / 3) (-h_1, h_-1, h_0),  h_m = sum_c W[c] x[1m, c].

    The weight has a row for every degree, as the reference's file has; only that of l = 1 is read.
    """

    def __init__(self, max_degree: int, channels: int, mirrored: bool) -> None:
        super().__init__()
        self.mirrored = mirrored
        self.linear = DegreeLinear(max_degree, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "atom lm channel"]) -> Float[Tensor, "atom 3"]:
        """Rotates with the structure unless it is mirrored."""
        rows = (x[:, 1:4] @ self.linear.weight[1])[..., 0]
        found = torch.stack([sign * rows[:, row] for row, sign in COMPONENTS], 1)
        return sqrt(4 * pi / 3) * (mirror(found) if self.mirrored else found)


class DirectHead(nn.Module):
    """Energy, force and displacement of each atom, and what makes features of forces.

        E_i = std_s e(d_i) + shift_s,     F_i = rms v_F(x_i),     noise_i / sigma = v_N(x_i)

    std_s and rms are statistics of the labels, in float64.
    """

    energy_spread: Tensor
    force_spread: Tensor

    def __init__(self, config: DPA4Config, first_degree: int, last_degree: int) -> None:
        super().__init__()
        mirrored, channels = config.force_head == "mirrored", config.channels
        self.energy = EnergyHead(config)
        self.embedding = ForceEmbedding(first_degree, channels, mirrored, config.epsilon)
        self.force = VectorHead(last_degree, channels, mirrored)
        self.noise = VectorHead(last_degree, channels, mirrored)
        ones = torch.ones(len(config.species), dtype=torch.float64)
        self.register_buffer("energy_spread", ones)
        self.register_buffer("force_spread", torch.ones((), dtype=torch.float64))

    def embed(self, given: NoisyForces) -> Float[Tensor, "atom lm channel"]:
        """First features of atoms that were displaced."""
        return self.embedding(given)

    def hidden(self, descriptor: Float[Tensor, "atom channel"]) -> Float[Tensor, "atom hidden"]:
        """What the last gated layer of the energy gives."""
        return self.energy.hidden(descriptor)

    def forward(
        self,
        descriptor: Float[Tensor, "atom channel"],
        x: Float[Tensor, "atom lm channel"],
        species: Int[Tensor, " atom"],
        shift: Float[Tensor, " species"],
    ) -> DirectOutput:
        """Everything at once.

        Args:
            x: features after the last block.
            shift: energy of each species in eV.
        """
        energy, force = self.energy(descriptor), self.force(x)
        return DirectOutput(
            energies=energy.double() * self.energy_spread[species] + shift[species],
            forces=force.double() * self.force_spread,
            scaled_energies=energy,
            scaled_forces=force,
            noise=self.noise(x),
            descriptor=descriptor,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DirectHead:
        """Move or cast everything but the statistics, which stay float64."""
        kept = {name: getattr(self, name) for name in ("energy_spread", "force_spread")}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self


def mirror(vectors: Float[Tensor, "atom 3"]) -> Float[Tensor, "atom 3"]:
    """The vectors in the plane mirror y -> -y."""
    return vectors * vectors.new_tensor([1.0, -1.0, 1.0])
