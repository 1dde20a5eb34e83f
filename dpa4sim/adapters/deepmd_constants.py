"""Index tables that DeePMD-kit stores in its checkpoints; they follow from the options."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dpa4sim.config import DPA4Config
from dpa4sim.model.frames import degree_of_lm, degree_of_row
from dpa4sim.model.norm import row_weights


def constants(config: DPA4Config, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Index tables that DeePMD-kit stores in its checkpoints, under `descriptor.`."""
    yield "version_tensor", torch.tensor(float(config.descriptor_version), dtype=torch.float64)
    yield "mean", torch.zeros(0, dtype=dtype)
    yield "stddev", torch.ones(0, dtype=dtype)
    top = config.top_degree + config.extra_degree
    calculators = ["wigner_calc"]
    if config.environment_seed and top > 0:
        lm = torch.tensor(degree_of_lm(top)[1:])
        yield "gie.non_scalar_row_index", torch.arange(1, (top + 1) ** 2)
        yield "gie.zonal_m0_col_index_for_row", lm * lm + lm
        yield "gie.radial_slot_index_for_row", lm - 1
        if config.extra_degree:
            calculators.append("gie_zonal_wigner_calc")
    sign = torch.tensor([-1.0, -1.0, 1.0], dtype=dtype)
    for name in calculators:
        yield f"{name}.l1_perm", torch.tensor([1, 2, 0])
        yield f"{name}.l1_sign_outer", sign[:, None] * sign
    for index, (degree, order) in enumerate(zip(config.degrees, config.orders, strict=True)):
        for name, value in _block_constants(config, degree, order, dtype):
            yield f"blocks.{index}.{name}", value
    last = (config.degrees[-1] if config.degrees else config.top_degree) + config.extra_degree
    readout_degree = 0 if config.readout == "scalar" else last
    for unit in range(config.readout_layers):
        final = unit == config.readout_layers - 1
        name = "output_ffn" if final else f"readout_pre_layers.{unit}"
        yield from _ffn_constants(name, readout_degree, gated=config.readout == "scalar")


def _block_constants(
    config: DPA4Config, degree: int, order: int, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    node = degree + config.extra_degree
    norms = [("before_convolution", "pre_so2_norm", degree)]
    norms.append(("after_convolution", "post_so2_norm", degree))
    for unit in range(config.ffn_blocks):
        norms.append(("before_ffn", f"pre_ffn_norms.{unit}", node))
        norms.append(("after_ffn", f"post_ffn_norms.{unit}", node))
        yield from _ffn_constants(f"ffns.{unit}", node, gated=config.ffn_grid == "none")
    for place, name, top in norms:
        if place in config.norm_places:
            lm = torch.tensor(degree_of_lm(top))
            yield f"{name}.expand_index", lm
            yield f"{name}.balance_weight", row_weights(lm, config.channels).to(dtype)
    lm = torch.tensor(degree_of_lm(degree))
    for name in ("pre_focus_mix", "post_focus_mix"):
        yield f"so2_conv.{name}.expand_index", lm
    rows = torch.tensor(degree_of_row(degree, order))
    n_zonal = degree + 1
    negative: list[int] = []
    positive: list[int] = []
    start = n_zonal
    for m in range(1, order + 1):
        size = degree - m + 1
        negative += range(start, start + size)
        positive += range(start + size, start + 2 * size)
        start += 2 * size
    for layer in range(config.so2_layers):
        yield f"so2_conv.so2_linears.{layer}.m0_idx", torch.arange(n_zonal)
        yield f"so2_conv.so2_linears.{layer}.pos_indices", torch.tensor(positive).long()
        yield f"so2_conv.so2_linears.{layer}.neg_indices", torch.tensor(negative).long()
        if layer == config.so2_layers - 1:
            continue
        yield f"so2_conv.non_linearities.{layer}.expand_index", rows[1:] - 1
        if config.so2_norm:
            name = f"so2_conv.so2_inter_norms.{layer}"
            yield f"{name}.degree_index_m", rows
            yield f"{name}.balance_weight", row_weights(rows, config.focus_width).to(dtype)
    if config.edge_product != "none":
        compact, dense = _kernel_index(degree, order)
        yield "so2_conv.radial_degree_mixer.kernel_compact_index", compact
        yield "so2_conv.radial_degree_mixer.kernel_dense_index", dense


def _ffn_constants(name: str, degree: int, *, gated: bool) -> Iterator[tuple[str, Tensor]]:
    lm = torch.tensor(degree_of_lm(degree))
    for linear in ("so3_linear_1", "so3_linear_2"):
        yield f"{name}.{linear}.expand_index", lm
    if gated:
        yield f"{name}.act.expand_index", lm[1:] - 1


def _kernel_index(degree: int, order: int) -> tuple[Tensor, Tensor]:
    """Where the compact kernel's entries [l, l'] stand in the dense (row', row) matrix."""
    n_rows = len(degree_of_row(degree, order))
    compact: list[int] = []
    dense: list[int] = []
    base = start = 0
    for m in range(order + 1):
        size = degree - m + 1
        for _ in range(1 if m == 0 else 2):
            for source in range(size):
                for target in range(size):
                    compact.append(base + source * size + target)
                    dense.append((start + target) * n_rows + start + source)
            start += size
        base += size * size
    return torch.tensor(compact), torch.tensor(dense)
