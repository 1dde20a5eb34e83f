"""The grid product of the feed-forward unit in one kernel per direction.  Eq. 32-38

    c = T^+ ((T a) (T b)) sigmoid(logit),   c_0 <- c_0 + silu(left) right

The reference is `GridProduct` with the operation "product"; its gate's small matrix stays outside.
Grid values never leave the chip: the points pass a few at a time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from dpa4sim.kernels.triton_plan import FRAME_PRECISION, Accuracy, check_accuracy, padded
from dpa4sim.kernels.triton_tiles import Tile, launch, tile_for


def grid_product(
    a: Float[Tensor, "atom lm_frame channel"],
    b: Float[Tensor, "atom lm_frame channel"],
    pair: Float[Tensor, "atom two_channel"],
    logit: Float[Tensor, "atom channel"],
    to_grid: Float[Tensor, "grid lm_frame"],
    from_grid: Float[Tensor, "lm_frame grid"],
    accuracy: Accuracy = "high",
) -> Float[Tensor, "atom lm_frame channel"]:
    """The gated product of two fields.

    Args:
        pair: left and right of the scalar that is added to the first row.
        logit: of the gate of all rows.

    Raises:
        ConfigError: an accuracy that is none.
    """
    check_accuracy(accuracy)
    tables = to_grid.contiguous(), from_grid.contiguous()
    return _GridProduct.apply(a, b, pair, logit, *tables, FRAME_PRECISION[accuracy])


class _GridProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        pair: Tensor,
        logit: Tensor,
        to_grid: Tensor,
        from_grid: Tensor,
        precision: str,
    ) -> Tensor:
        a, b, pair, logit = (tensor.contiguous() for tensor in (a, b, pair, logit))
        ctx.save_for_backward(a, b, pair, logit, to_grid, from_grid)
        ctx.precision = precision
        out = torch.empty_like(a)
        tile, sizes = _sizes("grid_forward", a, to_grid, precision)
        launch(_grid_forward, (a.shape[0],), a, tile, a, b, pair, logit, to_grid, from_grid, out,
               **sizes)  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, b, pair, logit, to_grid, from_grid = ctx.saved_tensors
        found = [torch.empty_like(tensor) for tensor in (a, b, pair, logit)]
        tile, sizes = _sizes("grid_backward", a, to_grid, ctx.precision)
        launch(_grid_backward, (a.shape[0],), a, tile, gradient.contiguous(), a, b, pair, logit,
               to_grid, from_grid, *found, **sizes)  # fmt: skip
        return *found, None, None, None


def _sizes(name: str, a: Tensor, to_grid: Tensor, precision: str) -> tuple[Tile, dict[str, Any]]:
    (_, lm, width), points = a.shape, to_grid.shape[0]
    tile = tile_for(name, (lm, points, width), a.device)
    sizes = {"LM": lm, "POINTS": points, "C": width, "LMP": padded(lm), "P": precision}
    return tile, sizes | {"BC": min(tile.columns, padded(width)), "BP": tile.block}


@triton.jit
def _points(
    first: tl.tensor,
    to_grid: tl.tensor,
    from_grid: tl.tensor,
    POINTS: tl.constexpr,
    LM: tl.constexpr,
    LMP: tl.constexpr,
    BP: tl.constexpr,
) -> Any:
    """Rows of T and columns of T^+ that belong to BP points."""
    point, q = first + tl.arange(0, BP), tl.arange(0, LMP)
    inside, row = point < POINTS, q < LM
    there = tl.load(
        to_grid + point[:, None] * LM + q[None, :],
        mask=inside[:, None] & row[None, :],
        other=0.0,
    )
    back = tl.load(
        from_grid + q[:, None] * POINTS + point[None, :],
        mask=row[:, None] & inside[None, :],
        other=0.0,
    )
    return there, back


@triton.jit
def _grid_forward(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    pair: tl.tensor,
    logit: tl.tensor,
    to_grid: tl.tensor,
    from_grid: tl.tensor,
    out: tl.tensor,
    LM: tl.constexpr,
    POINTS: tl.constexpr,
    C: tl.constexpr,
    LMP: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
) -> None:
    real: tl.constexpr = out.dtype.element_ty
    atom, q = tl.program_id(0).to(tl.int64), tl.arange(0, LMP)
    for column in range(0, C, BC):
        c = column + tl.arange(0, BC)
        ok = (q < LM)[:, None] & (c < C)[None, :]
        at = atom * (LM * C) + q[:, None] * C + c[None, :]
        a, b = tl.load(a_ptr + at, mask=ok, other=0.0), tl.load(b_ptr + at, mask=ok, other=0.0)
        total = tl.zeros((LMP, BC), real)
        for first in range(0, POINTS, BP):
            there, back = _points(first, to_grid, from_grid, POINTS, LM, LMP, BP)
            product = tl.dot(there, a, input_precision=P, out_dtype=real)
            product *= tl.dot(there, b, input_precision=P, out_dtype=real)
            total = tl.dot(back, product, total, input_precision=P, out_dtype=real)
        gate = tl.sigmoid(tl.load(logit + atom * C + c, mask=c < C, other=0.0))
        left = tl.load(pair + atom * (2 * C) + c, mask=c < C, other=0.0)
        right = tl.load(pair + atom * (2 * C) + C + c, mask=c < C, other=0.0)
        scalar = tl.where(q == 0, 1.0, 0.0).to(real)[:, None]
        scalar *= (left * tl.sigmoid(left) * right)[None, :]
        tl.store(out + at, total * gate[None, :] + scalar, mask=ok)


@triton.jit
def _grid_backward(
    d_out: tl.tensor,
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    pair: tl.tensor,
    logit: tl.tensor,
    to_grid: tl.tensor,
    from_grid: tl.tensor,
    d_a: tl.tensor,
    d_b: tl.tensor,
    d_pair: tl.tensor,
    d_logit: tl.tensor,
    LM: tl.constexpr,
    POINTS: tl.constexpr,
    C: tl.constexpr,
    LMP: tl.constexpr,
    P: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
) -> None:
    """The grid values are made again."""
    real: tl.constexpr = d_out.dtype.element_ty
    atom, q = tl.program_id(0).to(tl.int64), tl.arange(0, LMP)
    for column in range(0, C, BC):
        c = column + tl.arange(0, BC)
        channel = c < C
        ok = (q < LM)[:, None] & channel[None, :]
        at = atom * (LM * C) + q[:, None] * C + c[None, :]
        a, b = tl.load(a_ptr + at, mask=ok, other=0.0), tl.load(b_ptr + at, mask=ok, other=0.0)
        g = tl.load(d_out + at, mask=ok, other=0.0)
        gate = tl.sigmoid(tl.load(logit + atom * C + c, mask=channel, other=0.0))
        of_a, of_b = tl.zeros((LMP, BC), real), tl.zeros((LMP, BC), real)
        of_gate = tl.zeros((BC,), real)
        for first in range(0, POINTS, BP):
            there, back = _points(first, to_grid, from_grid, POINTS, LM, LMP, BP)
            on_a = tl.dot(there, a, input_precision=P, out_dtype=real)
            on_b = tl.dot(there, b, input_precision=P, out_dtype=real)
            arriving = tl.dot(tl.trans(back), g, input_precision=P, out_dtype=real)
            of_gate += tl.sum(arriving * on_a * on_b, 0)
            arriving *= gate[None, :]
            turned = tl.trans(there)
            of_a = tl.dot(turned, arriving * on_b, of_a, input_precision=P, out_dtype=real)
            of_b = tl.dot(turned, arriving * on_a, of_b, input_precision=P, out_dtype=real)
        tl.store(d_a + at, of_a, mask=ok)
        tl.store(d_b + at, of_b, mask=ok)
        tl.store(d_logit + atom * C + c, of_gate * gate * (1 - gate), mask=channel)
        left = tl.load(pair + atom * (2 * C) + c, mask=channel, other=0.0)
        right = tl.load(pair + atom * (2 * C) + C + c, mask=channel, other=0.0)
        top = tl.load(d_out + atom * (LM * C) + c, mask=channel, other=0.0)
        s = tl.sigmoid(left)
        d_left = top * right * s * (1 + left * (1 - s))
        tl.store(d_pair + atom * (2 * C) + c, d_left, mask=channel)
        tl.store(d_pair + atom * (2 * C) + C + c, top * left * s, mask=channel)
