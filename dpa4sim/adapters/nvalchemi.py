"""nvalchemi-toolkit 0.2: its batches <-> Batch, and a model for its dynamics.

Importing this module imports nvalchemi, which takes ten seconds and more.

The model declares no neighbour list and reads none: it searches for its own neighbours at every
call.  A list that is made for it may reach beyond the cutoff, may have been cut off at the width of
its matrix, or may be older than the positions; none of that can be told from the list itself.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from dpa4sim.batch import Batch
from dpa4sim.errors import DataError, ModelError
from dpa4sim.moments import magnetic_elements
from dpa4sim.potential import EnergyModel, Potential, Prediction

try:
    from nvalchemi.data import AtomicData
    from nvalchemi.data import Batch as AlchemiBatch
    from nvalchemi.models.base import BaseModelMixin, ModelConfig
except ImportError as error:
    raise ImportError(
        "dpa4sim.adapters.nvalchemi needs nvalchemi-toolkit 0.2, which is not installed. "
        "Type: pip install 'dpa4sim[nvalchemi]'."
    ) from error

OUTPUTS = ("energy", "forces", "stress", "atomic_energies")


def from_batch(data: AlchemiBatch) -> Batch:
    """The systems of their batch; without a cell and pbc they are molecules.

    Raises:
        DataError: a quantity is not there for each system, or there are empty rows.
    """
    n_systems, positions = data.num_graphs, data.positions.detach().double()
    if len(positions) != data.num_nodes:
        raise DataError(
            f"The batch has room for {len(positions)} atoms and holds {data.num_nodes}. "
            "Cut the empty rows off with its trim()."
        )
    missing = positions.new_zeros(n_systems, 3, 3)
    cell, pbc = _per_system(data, "cell"), _per_system(data, "pbc")
    periodic = missing[:, 0].bool() if pbc is None else pbc.detach().bool()
    if cell is None and bool(periodic.any()):
        raise DataError(
            "A system of the batch is periodic, and the batch has no 'cell'. "
            "Give a cell, or pbc = False."
        )
    return Batch(
        positions=positions,
        atomic_numbers=data.atomic_numbers.long(),
        cell=missing if cell is None else cell.detach().double(),
        pbc=periodic,
        system_idx=data.batch_idx.long(),
        n_atoms=data.num_nodes_per_graph.long(),
        charge=_total(data, "charge"),
        spin=_total(data, "spin"),
    )


def to_data(
    batch: Batch, prediction: Prediction | None = None, dtype: torch.dtype = torch.float64
) -> list[AtomicData]:
    """One record per system, on the CPU, with places for energy, forces and stress.

    Every system has a cell and pbc, molecules too.  nvalchemi keeps of a batch only the keys that
    its first system has, and of a refilled one only those that all have: a crystal behind a
    molecule without a cell would become a molecule.

    Args:
        batch: the systems.
        prediction: of this batch, to fill the places with; zeros without one.
        dtype: of every number in it, and so of what the model will return.
    """
    values = _zeros(batch) if prediction is None else _values(prediction)
    values = {name: value.detach().to("cpu", dtype) for name, value in values.items()}
    systems = batch.to("cpu").split()
    forces = values["forces"].split([len(system.positions) for system in systems])
    records = []
    for s, system in enumerate(systems):
        state = {"charge": system.charge, "spin": system.spin}
        record = AtomicData(
            positions=system.positions.to(dtype, copy=True),
            atomic_numbers=system.atomic_numbers.clone(),
            cell=system.cell.to(dtype, copy=True),
            pbc=system.pbc.clone(),
            energy=values["energy"][s : s + 1].clone(),
            forces=forces[s].clone(),
            stress=values["stress"][s : s + 1].clone(),
            **{name: v.to(dtype)[:, None] for name, v in state.items() if v is not None},
        )
        records.append(record)
    return records


def to_batch(
    batch: Batch, prediction: Prediction | None = None, dtype: torch.dtype = torch.float64
) -> AlchemiBatch:
    """Their batch of these systems on the same device, with places for every output.

    For the arguments see `to_data`.
    """
    data = AlchemiBatch.from_data_list(to_data(batch, prediction, dtype), device=batch.device)
    values = _zeros(batch) if prediction is None else _values(prediction)
    _give_places(data, {"atomic_energies": values["atomic_energies"].to(dtype)})
    return data


class DPA4Model(torch.nn.Module, BaseModelMixin):
    """An EnergyModel as nvalchemi sees it.

    Args:
        potential: anything that turns a Batch into a Prediction, such as `dpa4sim.load(...)`.

    `model(data)` returns the active ones of `OUTPUTS` in the dtype of the positions, detached: eV,
    eV/Å, and eV/Å^3 with tension positive, which is the sign since nvalchemi-toolkit 0.2.  The
    stress of a system without a volume is NaN, and so is everything of a system that cannot be
    computed; the others do not notice it.

    nvalchemi's dynamics drop an output that has no place in the batch, so those without a place
    are given one at the first call; `to_batch` gives them from the start.
    """

    def __init__(self, potential: EnergyModel) -> None:
        super().__init__()
        if magnetic_elements(potential):
            raise ModelError(
                "A model with spins does not run in nvalchemi: its batches have no place for the "
                "moments. Use dpa4sim.md or TorchSim."
            )
        self.potential = potential
        self.model_config = ModelConfig(
            outputs=frozenset(OUTPUTS),
            autograd_outputs=frozenset(),
            autograd_inputs=frozenset(),
            required_inputs=frozenset(),
            optional_inputs=frozenset({"cell", "pbc", "charge", "spin"}),
            supports_pbc=True,
            needs_pbc=False,
            neighbor_config=None,
        )

    @property
    def cutoff(self) -> float:
        """Radius of the neighbour graph in Å."""
        return self.potential.cutoff

    @property
    def embedding_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape per atom of what `compute_embeddings` adds; empty for other models than ours."""
        if isinstance(self.potential, Potential):
            return {"node_embeddings": (self.potential.config.channels,)}
        return {}

    def forward(self, data: AtomicData | AlchemiBatch) -> OrderedDict[str, Tensor]:
        """Energy (system, 1), forces, stress and atomic energies of the systems."""
        whole = AlchemiBatch.from_data_list([data]) if isinstance(data, AtomicData) else data
        prediction = self.potential(from_batch(whole).to(self.potential.device))
        active, like = BaseModelMixin.output_data(self), whole.positions
        values = OrderedDict(
            (name, value.detach().to(like))
            for name, value in _values(prediction).items()
            if name in active
        )
        _give_places(whole, values)
        return values

    def compute_embeddings(self, data: AtomicData | AlchemiBatch) -> AtomicData | AlchemiBatch:
        """Put the invariant features of the atoms into the data as `node_embeddings`.

        Raises:
            ModelError: the model has none.
        """
        if not isinstance(self.potential, Potential):
            raise ModelError(
                f"{type(self.potential).__name__} has no embeddings. Give a dpa4sim Potential."
            )
        whole = AlchemiBatch.from_data_list([data]) if isinstance(data, AtomicData) else data
        batch = from_batch(whole).to(self.potential.device)
        found = self.potential(batch, descriptors=True).descriptors
        if found is None:
            raise ModelError("The potential returned no descriptors.")
        features = found.to(whole.positions)
        if isinstance(data, AtomicData):
            data.add_node_property("node_embeddings", features)
        else:
            _put_rows(data, "node_embeddings", features)
        return data


def _values(prediction: Prediction) -> dict[str, Tensor]:
    return {
        "energy": prediction.energy[:, None],
        "forces": prediction.forces,
        "stress": prediction.stress,
        "atomic_energies": prediction.atomic_energies,
    }


def _zeros(batch: Batch) -> dict[str, Tensor]:
    cell, positions = batch.cell, batch.positions
    return {
        "energy": torch.zeros_like(cell[:, 0, :1]),
        "forces": torch.zeros_like(positions),
        "stress": torch.zeros_like(cell),
        "atomic_energies": torch.zeros_like(positions[:, 0]),
    }


def _give_places(data: AlchemiBatch, values: dict[str, Tensor]) -> None:
    """Keep the values for which the batch has no place; the dynamics write all but the last.

    The atomic energies are no quantity that they know: those are written here, always.
    """
    for name, value in values.items():
        if name == "atomic_energies":
            _put_rows(data, name, value)
        elif name not in data:
            data[name] = value.clone()


def _put_rows(data: AlchemiBatch, name: str, value: Tensor) -> None:
    """Write a quantity of the atoms that need not be among those that they know by name."""
    if name in data:
        data[name].copy_(value)
        return
    parts = [part.clone() for part in value.split(data.num_nodes_list)]
    data.add_key(name, parts, level="node")


def _per_system(data: AlchemiBatch, name: str) -> Tensor | None:
    value = getattr(data, name, None)
    if value is not None and len(value) != data.num_graphs:
        raise DataError(
            f"The batch has {len(value)} entries of '{name}' for {data.num_graphs} systems. "
            f"Give every system its '{name}', for instance by "
            "dpa4sim.adapters.nvalchemi.to_batch."
        )
    return value


def _total(data: AlchemiBatch, name: str) -> Tensor | None:
    value = _per_system(data, name)
    return None if value is None else value.detach().double().reshape(-1)
