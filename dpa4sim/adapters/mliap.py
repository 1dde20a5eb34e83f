"""ML-IAP: a potential as LAMMPS's `pair_style mliap unified` takes it, ranks and GPUs included.

LAMMPS gives the pairs (i, j, r_ij) of its own atoms i; j may be a ghost, the image of an atom that
this or another rank owns.  DPA4 passes messages, so before each block the ghosts need the features
of their owners, and on the way back the owners need the gradients of their ghosts:

    forward  x_ghost = x_owner,        backward  dE/dx_owner += dE/dx_ghost

LAMMPS does both (`forward_exchange`, `reverse_exchange`) where it runs with Kokkos.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dpa4sim.edges import Edges
from dpa4sim.errors import ConfigError, DataError, ModelError
from dpa4sim.potential import Potential, load

FORMAT = "dpa4sim-mliap-1"
"""Written into every pickle; one of another format is refused."""


class Unified:
    """What `pair_style mliap unified FILE` finds in its file.

    Args:
        potential: the network; it follows LAMMPS to the device of its data.

    The attributes without an underscore are LAMMPS's words.  A pickle holds the model file and
    nothing else of this class.

    Raises:
        ModelError: a ZBL window, whose gates need all the edges that end at an atom, or a model of
            charge and spin.
    """

    def __init__(self, potential: Potential) -> None:
        config = potential.config
        reason = None
        if config.zbl_inner is not None:
            reason = "a ZBL window, whose gates (Eq. 5) need edges that other ranks have"
        elif config.charge_spin:
            reason = "charge and spin as inputs, which LAMMPS's ML-IAP does not pass on"
        elif config.has_spins:
            raise ModelError("ML-IAP cannot run a model with spins: LAMMPS passes no moments on.")
        if reason is not None:
            raise ModelError(
                f"ML-IAP cannot run this model: it has {reason}. "
                "Use `fix external` (adapters/lammps.py) or pair_style deepmd (dpa4sim convert)."
            )
        self.potential = potential
        self.interface: Any = None
        self.element_types = list(config.species)
        self.ndescriptors = self.nparams = 1  # LAMMPS makes room for them; nobody asks for them
        self.rcutfac = config.cutoff / 2  # times the sum of two radii, which are 1
        self.cutoff = config.cutoff

    def compute_descriptors(self, data: Any) -> None:
        """Nothing: the descriptors stay inside the network."""

    def compute_gradients(self, data: Any) -> None:
        """Nothing: `compute_forces` does it all."""

    def compute_forces(self, data: Any) -> None:
        """Atomic energies of the own atoms and f_ij = dE/dr_ij of their pairs.

        Raises:
            DataError: a type without an element, or ghosts in a LAMMPS that cannot exchange
                features with them.
        """
        elements = torch.as_tensor(data.elems)
        if len(elements) and int(elements.min()) < 0:
            raise DataError("pair_coeff maps an atom type to NULL. Name an element for each type.")
        self._follow(elements.device)
        n_own = int(getattr(data, "nlocal", data.nlistatoms))
        edges, order = self._edges(data, len(elements), elements.device)
        exchange = hasattr(data, "forward_exchange")
        if not exchange and edges.n_edges and int(edges.neighbor.max()) >= n_own:
            raise DataError(
                "This LAMMPS gives ML-IAP no forward_exchange, and DPA4 passes messages to ghost "
                "atoms. Run it with Kokkos: lmp -k on g 1 -sf kk. On CPUs use pair_style deepmd."
            )
        vector = edges.vector.requires_grad_(True)
        with torch.enable_grad(), _exchanging(self.potential.model, data, n_own, exchange):
            atomic, _ = self.potential.model(elements.long(), edges)
            own = atomic[:n_own]
            (gradient,) = torch.autograd.grad(own.sum(), vector)
        _tell(data, own.detach(), _unsorted(gradient.double(), order))

    def save(self, path: str | Path) -> None:
        """Write the pickle that LAMMPS opens; it appears whole or not at all.

        Raises:
            ConfigError: the suffix is .pt or .pth, which some versions of LAMMPS give to torch.load
                in its safe mode, and that refuses a class.
        """
        path = Path(path)
        if path.suffix in (".pt", ".pth"):
            raise ConfigError(f"{path} should end in .mliap: LAMMPS reads {path.suffix} otherwise.")
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(pickle.dumps(self))
        partial.replace(path)

    def _follow(self, device: torch.device) -> None:
        if device != self.potential.device:
            p = self.potential
            dtype = str(p.dtype).removeprefix("torch.")
            self.potential = Potential(p.model, card=p.card, device=device, dtype=dtype)

    def _edges(self, data: Any, n_atoms: int, device: torch.device) -> tuple[Edges, Tensor]:
        """LAMMPS's pairs sorted by center, and the sorting."""
        if data.npairs == 0:
            nothing = torch.zeros(0, dtype=torch.long, device=device)
            center = neighbor = nothing
            vector = torch.zeros(0, 3, dtype=self.potential.dtype, device=device)
        else:
            center = torch.as_tensor(data.pair_i, device=device).long()
            neighbor = torch.as_tensor(data.pair_j, device=device).long()
            vector = torch.as_tensor(data.rij, device=device).to(self.potential.dtype, copy=True)
        order = torch.argsort(center, stable=True)
        center, neighbor, vector = center[order], neighbor[order], vector[order]
        rows = torch.arange(n_atoms + 1, device=device)
        return Edges(center, neighbor, vector, torch.searchsorted(center, rows)), order

    def __getstate__(self) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            self.potential.save(path)
            content = path.read_bytes()
        dtype = str(self.potential.dtype).removeprefix("torch.")
        return {"format": FORMAT, "model": content, "dtype": dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("format") != FORMAT:
            raise ModelError(
                f"This ML-IAP file has the format {state.get('format')!r}; this version of dpa4sim "
                f"reads '{FORMAT}'. Write it again with dpa4sim export."
            )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(state["model"])
            potential = load(path, dtype=state["dtype"])
        Unified.__init__(self, potential)


class _Exchange(torch.autograd.Function):
    """Features of the owners to their ghosts; gradients of the ghosts to their owners."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, data: Any, n_own: int) -> Tensor:
        ctx.data, ctx.n_own = data, n_own
        flat = x.detach().flatten(1).contiguous()
        out = torch.empty_like(flat)
        _settle(flat)
        data.forward_exchange(flat, out, flat.shape[1])
        _settle(flat)
        return out.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        flat = gradient.flatten(1).contiguous()
        out = torch.empty_like(flat)
        _settle(flat)
        ctx.data.reverse_exchange(flat, out, flat.shape[1])
        _settle(flat)
        out[ctx.n_own :] = 0  # what a ghost had before was overwritten
        return out.view_as(gradient), None, None


def _settle(x: Tensor) -> None:
    """Wait for the GPU: LAMMPS's kernels may be on another stream."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


@contextmanager
def _exchanging(model: torch.nn.Module, data: Any, n_own: int, wanted: bool) -> Iterator[None]:
    """Inside, each block is given features whose ghosts are those of their owners.

    Ranks without pairs or atoms take part as well: the others wait for them.
    """

    def refresh(block: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *rest = given
        return _Exchange.apply(x, data, n_own), *rest

    blocks = model.get_submodule("blocks").children() if wanted else ()
    hooks = [block.register_forward_pre_hook(refresh) for block in blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _unsorted(gradient: Float[Tensor, "edge 3"], order: Tensor) -> Float[Tensor, "edge 3"]:
    """Rows in LAMMPS's order again."""
    return torch.empty_like(gradient).index_copy_(0, order, gradient)


def _tell(data: Any, energies: Float[Tensor, " atom"], gradient: Float[Tensor, "edge 3"]) -> None:
    """Energies and pair forces to LAMMPS, which has one way with Kokkos and one without."""
    listed = torch.as_tensor(data.iatoms)[: data.nlistatoms].long()
    energies = energies.index_select(0, listed.to(energies.device))
    if hasattr(data, "forward_exchange"):
        if len(energies):
            torch.as_tensor(data.eatoms, device=energies.device).copy_(energies)
    else:
        data.eatoms = energies.numpy()
    data.energy = float(energies.sum())
    if len(gradient):
        pairs = gradient.contiguous()
        _settle(pairs)
        data.update_pair_forces(pairs if pairs.is_cuda else pairs.numpy())
