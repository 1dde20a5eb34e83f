"""TorchSim: SimState <-> Batch, models in both directions.

TorchSim keeps lattice vectors as columns, we keep rows: the transpose lives here and in
`torchsim_steps`, which has our optimisers and integrators, and nowhere else.
Importing this module imports torch_sim, which takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from dpa4sim.batch import Batch
from dpa4sim.edges import computable
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.potential import EnergyModel, Prediction


def from_state(state: SimState) -> Batch:
    """The systems of a state; `charge` and `spin` come from its system extras, and magnetic
    moments, `magmoms`, from its atom extras.
    """
    cell = state.cell.detach().transpose(1, 2).to(torch.float64).contiguous()
    system_idx = state.system_idx.long()
    n_atoms = torch.zeros(len(cell), dtype=torch.long, device=cell.device)
    n_atoms = n_atoms.index_add(0, system_idx, torch.ones_like(system_idx))
    moments = state.atom_extras.get("magmoms")
    return Batch(
        positions=state.positions.detach().double(),
        atomic_numbers=state.atomic_numbers.long(),
        cell=cell,
        pbc=state.pbc.to(torch.bool).expand(len(cell), 3).contiguous(),
        system_idx=system_idx,
        n_atoms=n_atoms,
        charge=_extra(state, "charge"),
        spin=_extra(state, "spin"),
        magmoms=None if moments is None else moments.detach().double(),
    )


def to_state(batch: Batch, dtype: torch.dtype = torch.float64) -> SimState:
    """A state with standard masses; charge and spin become system extras, moments atom extras.

    Raises:
        DataError: the systems differ in pbc, for which a SimState has one entry only.
    """
    from ase.data import atomic_masses

    if not bool((batch.pbc == batch.pbc[0]).all()):
        raise DataError(
            "A TorchSim state holds one pbc for all its systems; these differ. "
            "Convert the systems of each kind by themselves."
        )
    masses = torch.as_tensor(atomic_masses, dtype=dtype, device=batch.device)
    given = {"charge": batch.charge, "spin": batch.spin}
    return SimState(
        positions=batch.positions.to(dtype, copy=True),
        masses=masses[batch.atomic_numbers],
        cell=batch.cell.transpose(1, 2).to(dtype).contiguous(),
        pbc=batch.pbc[0].clone(),
        atomic_numbers=batch.atomic_numbers.clone(),
        system_idx=batch.system_idx.clone(),
        _system_extras={name: value for name, value in given.items() if value is not None},
        _atom_extras={} if batch.magmoms is None else {"magmoms": batch.magmoms.clone()},
    )


class DPA4Model(ModelInterface):
    """An EnergyModel as TorchSim sees it.

    Args:
        potential: anything that turns a Batch into a Prediction, such as `dpa4sim.load(...)`.
        dtype: of the outputs and of the states that TorchSim makes for this model.
        compute_forces: put forces into the output.
        compute_stress: put the stress (eV/Å^3, tension positive) into the output; NaN for a
            system without a volume.
    """

    def __init__(
        self,
        potential: EnergyModel,
        *,
        dtype: torch.dtype = torch.float64,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        super().__init__()
        self.potential = potential
        self._device = torch.device(potential.device)
        self._dtype = dtype
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress

    @property
    def compute_forces(self) -> bool:
        """Whether the output has forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    @property
    def compute_stress(self) -> bool:
        """Whether the output has a stress."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    def forward(self, state: SimState, **kwargs: Any) -> dict[str, Tensor]:
        """Energy, forces and stress of a state, detached, in this model's dtype."""
        prediction = self.potential(from_state(state).to(self._device))
        output = {"energy": prediction.energy}
        if self._compute_forces:
            output["forces"] = prediction.forces
        if self._compute_stress:
            output["stress"] = prediction.stress
        if prediction.magnetic_forces is not None:
            output["magnetic_forces"] = prediction.magnetic_forces
        return {name: value.detach().to(self._dtype) for name, value in output.items()}


class FromTorchSim:
    """A TorchSim model as an EnergyModel, for our relaxation and dynamics.

    Args:
        model: with forces and stress switched on.
        cutoff: its radius in Å; None to ask the model for `cutoff` or `r_max`.

    A system that cannot be computed gets NaN and is not shown to the model, which would end the
    whole batch; the others do not notice it.  Atomic energies are NaN unless the model gives
    "energies".

    Raises:
        ConfigError: forces or stress are off, or no cutoff is known.
    """

    def __init__(self, model: ModelInterface, *, cutoff: float | None = None) -> None:
        for name in ("compute_forces", "compute_stress"):
            if not getattr(model, name):
                raise ConfigError(
                    f"{type(model).__name__} has {name}=False. Make it with {name}=True."
                )
        found = [cutoff, *(getattr(model, name, None) for name in ("cutoff", "r_max"))]
        known = [float(value) for value in found if value is not None]
        if not known:
            raise ConfigError(
                f"{type(model).__name__} does not say how far it looks. "
                "Give FromTorchSim(model, cutoff=...) in Å."
            )
        self.model, self.device, self._cutoff = model, torch.device(model.device), known[0]

    @property
    def cutoff(self) -> float:
        """Radius in Å beyond which two atoms share no edge."""
        return self._cutoff

    def __call__(self, batch: Batch) -> Prediction:
        """Energy, forces and stress; TorchSim's models read the device, and so does this.

        Raises:
            DataError: the systems differ in pbc.
        """
        good = computable(batch, self._cutoff)
        systems = good.nonzero()[:, 0].tolist()
        if len(systems) == batch.n_systems:
            return self._evaluate(batch)
        prediction = Prediction(
            energy=torch.full_like(batch.cell[:, 0, 0], torch.nan),
            forces=torch.full_like(batch.positions, torch.nan),
            stress=torch.full_like(batch.cell, torch.nan),
            atomic_energies=torch.full_like(batch.positions[:, 0], torch.nan),
        )
        if systems:
            found, atoms = self._evaluate(batch.select(systems)), good[batch.system_idx]
            prediction.energy[good], prediction.stress[good] = found.energy, found.stress
            prediction.forces[atoms] = found.forces
            prediction.atomic_energies[atoms] = found.atomic_energies
        return prediction

    def _evaluate(self, batch: Batch) -> Prediction:
        output = self.model(to_state(batch, self.model.dtype))
        output = {name: value.detach().double() for name, value in output.items()}
        unknown = torch.full_like(output["forces"][:, 0], torch.nan)
        has_volume = (batch.volume > 0)[:, None, None]
        return Prediction(
            energy=output["energy"],
            forces=output["forces"],
            stress=torch.where(has_volume, output["stress"], torch.nan),
            atomic_energies=output.get("energies", unknown),
        )


def energy_model(model: ModelInterface) -> EnergyModel:
    """What is inside a `DPA4Model`; any other TorchSim model wrapped."""
    return model.potential if isinstance(model, DPA4Model) else FromTorchSim(model)


def _extra(state: SimState, name: str) -> Tensor | None:
    value = state.system_extras.get(name)
    return None if value is None else value.detach().double().reshape(-1)
