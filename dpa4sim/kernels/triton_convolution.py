"""The edge pipeline of one block and focus in Triton kernels: gather, stack, scatter.

The same mathematics, plan and signature as kernels/edge_convolution.py, for CUDA in float32.
Deterministic: every sum has one order, and none depends on what else is in the batch.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from dpa4sim.errors import ConfigError
from dpa4sim.kernels.edge_convolution import Plan
from dpa4sim.kernels.triton_gather import gather
from dpa4sim.kernels.triton_plan import TritonPlan, available
from dpa4sim.kernels.triton_scatter import scatter
from dpa4sim.kernels.triton_so2 import stack


def triton_edge_convolution(
    node: Float[Tensor, "atom term_lm channel"],
    kernel: Float[Tensor, "edge column"],
    rows: Float[Tensor, "edge order lm_top"],
    alpha: Float[Tensor, "edge head"],
    plan: Plan,
) -> Float[Tensor, "atom lm channel"]:
    """Messages of one focus, summed at their centers.  Eq. 16-21, 25

    Args:
        plan: a TritonPlan; one of the CPU is completed first, at the accuracy "exact".

    Raises:
        ConfigError: tensors for which there are no Triton kernels.
    """
    if not available(node.device, node.dtype):
        raise ConfigError(
            f"There are no Triton kernels for {node.dtype} on {node.device}. They need float32 on "
            f"a CUDA device. Use the PyTorch path: kernels='torch'."
        )
    if not isinstance(plan, TritonPlan):
        plan = TritonPlan.of(plan, accuracy="exact")
    x = gather(node, kernel, rows, plan)
    return scatter(stack(x, plan), rows, alpha, plan)
