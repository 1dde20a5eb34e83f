"""Low-rank updates of a trained network's matrices, and folding them back into it.

    W <- W + alpha / rank  A B,    A (n_in, rank) random, B (rank, n_out) zero at the start

on the degree-wise SO(3) maps (A and B for each degree) and on the SO(2) layers (one A and B for
the matrix of m = 0 and one for the [U, V] of each +-m pair), so every update is equivariant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dpa4sim.errors import ConfigError, ModelError
from dpa4sim.model import DPA4
from dpa4sim.model.linear import DegreeLinear
from dpa4sim.model.so2_stack import SO2Stack
from dpa4sim.train.finetune import members


class LowRank(nn.Module):
    """W + alpha / rank A B of one weight.

    Args:
        weight: W, for its shape.
        rank: columns of A.
        scale: alpha / rank.
    """

    def __init__(self, weight: Float[Tensor, "*degree a b"], rank: int, scale: float) -> None:
        super().__init__()
        *degrees, n_in, n_out = weight.shape
        bound = n_in**-0.5
        down = torch.empty(*degrees, n_in, rank, dtype=weight.dtype).uniform_(-bound, bound)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(weight.new_zeros(*degrees, rank, n_out))
        self.scale = scale

    def forward(self, weight: Float[Tensor, "*degree a b"]) -> Float[Tensor, "*degree a b"]:
        """The updated weight."""
        return weight + self.scale * (self.down @ self.up)


def add_lora(
    model: DPA4, rank: int, alpha: float, only: Sequence[str] | None = None
) -> list[nn.Parameter]:
    """Give the SO(3) and SO(2) matrices low-rank updates, in place, and freeze everything else.

    Weights that are frozen already get none, so `freeze` before it leaves its groups alone.

    Args:
        rank: inner width of the updates.
        alpha: alpha / rank scales them.
        only: groups, as `freeze` takes them, that get updates; None all.

    Raises:
        ConfigError: a rank below 1, an unknown group, or nothing left to adapt.
        ModelError: the model has low-rank updates already.
    """
    if rank < 1:
        raise ConfigError(f"rank = {rank}; it must be at least 1.")
    if any(isinstance(module, LowRank) for module in model.modules()):
        raise ModelError("The model has low-rank updates already. Fold them first: fold(model).")
    chosen = None if only is None else members(model, only)
    places = [
        (module, leaf)
        for name, module, leaf in _matrices(model)
        if module.get_parameter(leaf).requires_grad and (chosen is None or name in chosen)
    ]
    if not places:
        raise ConfigError(
            "No SO(3) or SO(2) matrix is left for low-rank updates: all are frozen or left out. "
            "Freeze less, or name blocks in `only`, such as only=['blocks']."
        )
    model.requires_grad_(False)
    added: list[nn.Parameter] = []
    for module, leaf in places:
        update = LowRank(module.get_parameter(leaf), rank, alpha / rank)
        parametrize.register_parametrization(module, leaf, update)
        added += [update.down, update.up]
    return added


@torch.no_grad()
def fold(model: DPA4) -> DPA4:
    """A plain network with the updates added to its weights; the given one stays as it is."""
    weight = model.species_table
    plain = DPA4(model.config, dtype=weight.dtype).to(weight.device)
    for name, value in plain.state_dict(keep_vars=True).items():
        path, _, leaf = name.rpartition(".")
        value.copy_(getattr(model.get_submodule(path), leaf))
    return plain.train(model.training)


def _matrices(model: DPA4) -> Iterator[tuple[str, nn.Module, str]]:
    """Name, owner and name in the owner of every matrix that can have an update."""
    for path, module in model.named_modules():
        if isinstance(module, DegreeLinear):
            yield f"{path}.weight", module, "weight"
        elif isinstance(module, SO2Stack):
            lists = [("zonal", module.zonal)]
            lists += [
                (f"pairs.{layer}", pairs)
                for layer, pairs in enumerate(module.pairs)
                if isinstance(pairs, nn.ParameterList)
            ]
            for word, weights in lists:
                for index in range(len(weights)):
                    yield f"{path}.{word}.{index}", weights, str(index)
