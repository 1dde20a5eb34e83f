"""Prepare a network for training: the hand-written double backward, compiled where asked for.

Autograd stays the reference.  `prepare` puts the edge pipeline of kernels/edge_training.py into
every block that it covers; blocks with biases, SO(2) norms or products without a rank keep
autograd's path (`fallbacks` says which and why).  Compiled, the four passes of the SO(2) stack are
one graph each, shared by all blocks of equal shape, with edges as the only dynamic size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from dpa4sim.errors import ConfigError
from dpa4sim.kernels import so2_training
from dpa4sim.kernels.edge_convolution import Layer
from dpa4sim.kernels.edge_training import Passes, force_pass
from dpa4sim.kernels.so2_training import StackShape, flatten, unflatten
from dpa4sim.model import DPA4
from dpa4sim.model.emfa import EMFA

__all__ = ["fallbacks", "force_pass", "prepare"]

SMALLEST_SLAB = 2
"""Edges below which a graph with a dynamic size would be a special case."""

GRAPHS = 128
"""Graphs of one process: four passes for each stack shape, dtype and precision.  PyTorch's own
limit, 8, is for functions that recompile by mistake."""


def prepare(
    model: DPA4, *, compile: bool, products: torch.dtype | None = None, recompute: bool = False
) -> DPA4:
    """Install the training passes in the network, in place; numerically it stays what it was.

    Args:
        compile: compile the passes of the SO(2) stack (some ten seconds at the first step).
        products: torch.bfloat16 rounds the operands of the stack's matrix products.
        recompute: forget a block's activations and make them again in the backward pass.

    Take forces inside `force_pass()`.
    """
    if products not in (None, torch.bfloat16):
        raise ConfigError(
            f"products = {products}. The stack multiplies in its own dtype (None) or in "
            f"torch.bfloat16."
        )
    passes = _compiled_passes() if compile else Passes()
    for convolution in _convolutions(model):
        convolution.passes = passes if convolution.has_kernel else None
        convolution.product_dtype = products
    model.prepared, model.recompute = True, recompute
    return model


def fallbacks(model: DPA4) -> dict[int, str]:
    """Blocks that keep autograd's path, and why."""
    return {
        index: convolution.no_kernel_because
        for index, convolution in enumerate(_convolutions(model))
        if not convolution.has_kernel
    }


def _convolutions(model: DPA4) -> list[EMFA]:
    return [module for module in model.modules() if isinstance(module, EMFA)]


@cache
def _compiled_passes() -> Passes:
    """One compiled graph per pass and stack shape, of this process."""
    return Passes(
        forward=_compiled(so2_training.forward),
        backward=_compiled(so2_training.backward),
        second_backward=_compiled(so2_training.second_backward),
        final_backward=_compiled(so2_training.final_backward),
    )


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The pass as a graph of flat tensors: edges dynamic, weights static."""

    def flat(
        edges: Sequence[Any], weights: Sequence[Tensor], shape: StackShape, n: int, scaled: bool
    ) -> Any:
        return function(*edges, unflatten(weights, shape, n, scaled), shape)

    graph = torch.compile(flat, fullgraph=True)

    def call(*arguments: Any) -> Any:
        *edges, layers, shape = arguments
        if len(edges[0]) < SMALLEST_SLAB or not layers:
            return function(*arguments)
        # Detached first: a mark does not survive it, and the graphs are of values only.
        edges = tree_map_only(Tensor, Tensor.detach, edges)
        for tensor in tree_leaves(edges):
            if tensor is not None:
                torch._dynamo.mark_dynamic(tensor, 0)
        weights = [weight.detach() for weight in flatten(layers)]
        for weight in weights:
            torch._dynamo.mark_static(weight)
        with torch._dynamo.config.patch(recompile_limit=GRAPHS):
            return graph(edges, weights, shape, len(layers), _scaled(layers))

    return call


def _scaled(layers: Sequence[Layer]) -> bool:
    return any(layer.scalar_scale is not None for layer in layers)
