"""Device code of the SO(2) stack; kernels/triton_so2.py says what it computes and launches it.

A matrix product passes over a tile of edges in blocks of BN columns and BK rows of its matrix.
What one thread writes to memory another reads only behind a barrier.  Columns of the edge rows:
m = 0 first, (L + 1) C of them, then -m and +m, (L - m + 1) C each; the gate of column c of degree
l >= 1 stands (l - 1) C + c, so gates and columns run side by side.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit
def _product(
    a: tl.tensor,
    owned: tl.tensor,
    w: tl.tensor,
    n: tl.tensor,
    total: tl.tensor,
    K: tl.constexpr,
    N: tl.constexpr,
    BK: tl.constexpr,
    P: tl.constexpr,
) -> Any:
    """Total + a w for the columns n of w (K, N).

    Args:
        a: where each edge's K numbers start.
    """
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(a[:, None] + k[None, :], mask=owned[:, None] & (k < K)[None, :], other=0.0)
        ok = (k < K)[:, None] & (n < N)[None, :]
        matrix = tl.load(w + k[:, None] * N + n[None, :], mask=ok, other=0.0)
        total = tl.dot(x, matrix, total, input_precision=P, out_dtype=total.dtype)
    return total


@triton.jit
def _pair_product(
    a: tl.tensor,
    owned: tl.tensor,
    w: tl.tensor,
    n: tl.tensor,
    zero: tl.tensor,
    N: tl.constexpr,
    BK: tl.constexpr,
    P: tl.constexpr,
) -> Any:
    """P U - q V and p V + q U for the columns n, with p and q side by side at a."""
    both, minus, plus = zero, zero, zero
    for start in range(0, N, BK):
        k = start + tl.arange(0, BK)
        inside = owned[:, None] & (k < N)[None, :]
        p = tl.load(a[:, None] + k[None, :], mask=inside, other=0.0)
        q = tl.load(a[:, None] + N + k[None, :], mask=inside, other=0.0)
        at = w + k[:, None] * N + n[None, :]
        ok = (k < N)[:, None] & (n < N)[None, :]
        matrix = tl.load(at, mask=ok, other=0.0)
        both = tl.dot(p + q, matrix, both, input_precision=P, out_dtype=zero.dtype)
        matrix = tl.load(at + N * N, mask=ok, other=0.0)
        minus = tl.dot(q, matrix, minus, input_precision=P, out_dtype=zero.dtype)
        matrix = tl.load(at + 2 * N * N, mask=ok, other=0.0)
        plus = tl.dot(p, matrix, plus, input_precision=P, out_dtype=zero.dtype)
    return both + minus, both + plus


@triton.jit
def _zonal_layer(
    x: tl.tensor,
    following: tl.tensor,
    pre: tl.tensor,
    gates: tl.tensor,
    owned: tl.tensor,
    w: tl.tensor,
    gate_w: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    L: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Rows m = 0 of one layer: the scalars, and behind a barrier the degrees that they gate."""
    N: tl.constexpr = (L + 1) * C
    for column in range(0, C, BN):
        n = column + tl.arange(0, BN)
        ok = owned[:, None] & (n < C)[None, :]
        u = _product(x, owned, w, n, zero, N, N, BK, P)
        factor = tl.load(scale + n, mask=n < C, other=0.0)[None, :]
        old = tl.load(x[:, None] + n[None, :], mask=ok, other=0.0)
        tl.store(pre[:, None] + n[None, :], u, mask=ok)
        tl.store(following[:, None] + n[None, :], old + factor * u * tl.sigmoid(u), mask=ok)
    tl.debug_barrier()
    for column in range(0, L * C, BN):
        gate_n = column + tl.arange(0, BN)
        n, ok = C + gate_n, owned[:, None] & (gate_n < L * C)[None, :]
        u = _product(x, owned, w, n, zero, N, N, BK, P)
        gate = tl.sigmoid(_product(pre, owned, gate_w, gate_n, zero, C, L * C, BK, P))
        old = tl.load(x[:, None] + n[None, :], mask=ok, other=0.0)
        tl.store(gates[:, None] + gate_n[None, :], gate, mask=ok)
        tl.store(pre[:, None] + n[None, :], u, mask=ok)
        tl.store(following[:, None] + n[None, :], old + gate * u, mask=ok)
    tl.debug_barrier()


@triton.jit
def _pair_layer(
    x: tl.tensor,
    following: tl.tensor,
    pre: tl.tensor,
    gates: tl.tensor,
    owned: tl.tensor,
    w: tl.tensor,
    zero: tl.tensor,
    N: tl.constexpr,
    P: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """One pair (-m, +m) of one layer; every argument points to its own columns."""
    for column in range(0, N, BN):
        n = column + tl.arange(0, BN)
        ok, at = owned[:, None] & (n < N)[None, :], n[None, :]
        u, v = _pair_product(x, owned, w, n, zero, N, BK, P)
        gate = tl.load(gates[:, None] + at, mask=ok, other=0.0)
        p = tl.load(x[:, None] + at, mask=ok, other=0.0)
        q = tl.load(x[:, None] + N + at, mask=ok, other=0.0)
        tl.store(pre[:, None] + at, u, mask=ok)
        tl.store(pre[:, None] + N + at, v, mask=ok)
        tl.store(following[:, None] + at, p + gate * u, mask=ok)
        tl.store(following[:, None] + N + at, q + gate * v, mask=ok)


@triton.jit
def _gated_layers(
    x_ptr: tl.tensor,
    e: tl.tensor,
    owned: tl.tensor,
    state: tl.tensor,
    pre: tl.tensor,
    gates: tl.tensor,
    row: tl.tensor,
    step: tl.tensor,
    zonal: tl.tensor,
    pairs: tl.tensor,
    gate_w: tl.tensor,
    scale: tl.tensor,
    LAYERS: tl.constexpr,
    L: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    TOTAL: tl.constexpr,
    P: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> Any:
    """All layers but the last.

    Args:
        row: where in pre and gates each edge of the first layer goes.
        step: rows from one layer to the next.

    Returns:
        where the features of each edge start now.
    """
    ZONAL: tl.constexpr = (L + 1) * C
    zero = tl.zeros((BE, BN), x_ptr.dtype.element_ty)
    mine = state + (tl.program_id(0).to(tl.int64) * (2 * BE) + tl.arange(0, BE)) * TOTAL
    x = x_ptr + e * TOTAL
    for t in range(LAYERS - 1):
        following = mine + (t % 2) * (BE * TOTAL)
        u, gate = pre + (row + t * step) * TOTAL, gates + (row + t * step) * (L * C)
        _zonal_layer(
            x, following, u, gate, owned, zonal + t * (ZONAL * ZONAL), gate_w + t * (L * C * C),
            scale + t * C, zero, L, C, P, BN, BK,
        )  # fmt: skip
        column = ZONAL
        w = pairs
        for m in tl.static_range(1, M + 1):
            N: tl.constexpr = (L - m + 1) * C
            _pair_layer(
                x + column, following + column, u + column, gate + (m - 1) * C, owned,
                w + t * (3 * N * N), zero, N, P, BN, BK,
            )  # fmt: skip
            column += 2 * N
            w += LAYERS * 3 * N * N
        tl.debug_barrier()
        x = following
    return x


@triton.jit
def _products(
    x: tl.tensor,
    out: tl.tensor,
    owned: tl.tensor,
    zonal: tl.tensor,
    pairs: tl.tensor,
    t: tl.tensor,
    ADD: tl.constexpr,
    LAYERS: tl.constexpr,
    L: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Out (+)= x W of layer t, without an activation."""
    zero = tl.zeros((BE, BN), zonal.dtype.element_ty)
    ZONAL: tl.constexpr = (L + 1) * C
    for column in range(0, ZONAL, BN):
        n = column + tl.arange(0, BN)
        ok, at = owned[:, None] & (n < ZONAL)[None, :], out[:, None] + n[None, :]
        u = _product(x, owned, zonal + t * (ZONAL * ZONAL), n, zero, ZONAL, ZONAL, BK, P)
        if ADD:
            u += tl.load(at, mask=ok, other=0.0)
        tl.store(at, u, mask=ok)
    first, w = ZONAL, pairs
    for m in tl.static_range(1, M + 1):
        N: tl.constexpr = (L - m + 1) * C
        for column in range(0, N, BN):
            n = column + tl.arange(0, BN)
            ok, at = owned[:, None] & (n < N)[None, :], out[:, None] + first + n[None, :]
            u, v = _pair_product(x + first, owned, w + t * (3 * N * N), n, zero, N, BK, P)
            if ADD:
                u += tl.load(at, mask=ok, other=0.0)
                v += tl.load(at + N, mask=ok, other=0.0)
            tl.store(at, u, mask=ok)
            tl.store(at + N, v, mask=ok)
        first += 2 * N
        w += LAYERS * 3 * N * N


@triton.jit
def stack_forward(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    state: tl.tensor,
    pre: tl.tensor,
    gates: tl.tensor,
    zonal: tl.tensor,
    pairs: tl.tensor,
    gate_w: tl.tensor,
    scale: tl.tensor,
    row_ptr: tl.tensor,
    n_atoms: tl.tensor,
    n_edges: tl.tensor,
    LAYERS: tl.constexpr,
    L: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    TOTAL: tl.constexpr,
    P: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KEPT: tl.constexpr,
) -> None:
    """All layers, tile by tile.

    Args:
        KEPT: pre and gates keep every layer of every edge; else each program has one tile of them.
    """
    limit = tl.load(row_ptr + n_atoms)
    own = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    for tile in range(tl.program_id(0), tl.cdiv(limit, BE), tl.num_programs(0)):
        e = tile * BE + tl.arange(0, BE).to(tl.int64)
        owned = e < limit
        row, step = own, 0
        if KEPT:
            row, step = e, n_edges
        x = _gated_layers(
            x_ptr, e, owned, state, pre, gates, row, step, zonal, pairs, gate_w, scale,
            LAYERS, L, M, C, TOTAL, P, BE, BN, BK,
        )  # fmt: skip
        _products(
            x, y_ptr + e * TOTAL, owned, zonal, pairs, LAYERS - 1, False, LAYERS, L, M, C, P,
            BE, BN, BK,
        )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def _activation_backward(
    g: tl.tensor,
    d_u: tl.tensor,
    d_logit: tl.tensor,
    pre: tl.tensor,
    gates: tl.tensor,
    owned: tl.tensor,
    gate_w: tl.tensor,
    scale: tl.tensor,
    L: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    P: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """Cotangents of a layer's pre-activations from that of its output, g."""
    for column in range(0, L * C, BN):
        n = column + tl.arange(0, BN)
        at, ok = (C + n)[None, :], owned[:, None] & (n < L * C)[None, :]
        gate = tl.load(gates[:, None] + n[None, :], mask=ok, other=0.0)
        value = tl.load(g[:, None] + at, mask=ok, other=0.0)
        d_gate = value * tl.load(pre[:, None] + at, mask=ok, other=0.0)
        tl.store(d_u[:, None] + at, value * gate, mask=ok)
        first = (L + 1) * C
        for m in tl.static_range(1, M + 1):
            N: tl.constexpr = (L - m + 1) * C
            some = ok & (n >= (m - 1) * C)[None, :]
            for sign in tl.static_range(2):
                at = (first + sign * N + n - (m - 1) * C)[None, :]
                value = tl.load(g[:, None] + at, mask=some, other=0.0)
                d_gate += value * tl.load(pre[:, None] + at, mask=some, other=0.0)
                tl.store(d_u[:, None] + at, value * gate, mask=some)
            first += 2 * N
        tl.store(d_logit[:, None] + n[None, :], d_gate * gate * (1 - gate), mask=ok)
    tl.debug_barrier()
    for column in range(0, C, BN):
        n = column + tl.arange(0, BN)
        ok = owned[:, None] & (n < C)[None, :]
        u = tl.load(pre[:, None] + n[None, :], mask=ok, other=0.0)
        s = tl.sigmoid(u)
        factor = tl.load(scale + n, mask=n < C, other=0.0)[None, :]
        value = tl.load(g[:, None] + n[None, :], mask=ok, other=0.0)
        direct = value * factor * s * (1 + u * (1 - s))
        found = _product(d_logit, owned, gate_w, n, direct, L * C, C, BK, P)
        tl.store(d_u[:, None] + n[None, :], found, mask=ok)
    tl.debug_barrier()


@triton.jit
def stack_backward(
    d_y: tl.tensor,
    d_x: tl.tensor,
    x_ptr: tl.tensor,
    state: tl.tensor,
    d_logits: tl.tensor,
    pre: tl.tensor,
    gates: tl.tensor,
    zonal: tl.tensor,
    pairs: tl.tensor,
    gate_w: tl.tensor,
    scale: tl.tensor,
    zonal_t: tl.tensor,
    pairs_t: tl.tensor,
    gate_t: tl.tensor,
    row_ptr: tl.tensor,
    n_atoms: tl.tensor,
    n_edges: tl.tensor,
    LAYERS: tl.constexpr,
    L: tl.constexpr,
    M: tl.constexpr,
    C: tl.constexpr,
    TOTAL: tl.constexpr,
    P: tl.constexpr,
    BE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KEPT: tl.constexpr,
) -> None:
    """Cotangent of x, layer by layer in place; without KEPT the layers are passed again before."""
    limit = tl.load(row_ptr + n_atoms)
    own = tl.program_id(0).to(tl.int64) * BE + tl.arange(0, BE)
    d_logit = d_logits + own * (L * C)
    d_u = state + (tl.program_id(0).to(tl.int64) * (2 * BE) + tl.arange(0, BE)) * TOTAL
    for tile in range(tl.program_id(0), tl.cdiv(limit, BE), tl.num_programs(0)):
        e = tile * BE + tl.arange(0, BE).to(tl.int64)
        owned = e < limit
        row, step = tl.program_id(0).to(tl.int64) * (BE * (LAYERS - 1)) + tl.arange(0, BE), BE
        if KEPT:
            row, step = e, n_edges
        else:
            _gated_layers(
                x_ptr, e, owned, state, pre, gates, row, step, zonal, pairs, gate_w, scale,
                LAYERS, L, M, C, TOTAL, P, BE, BN, BK,
            )  # fmt: skip
        g = d_x + e * TOTAL
        _products(
            d_y + e * TOTAL, g, owned, zonal_t, pairs_t, LAYERS - 1, False, LAYERS, L, M, C, P,
            BE, BN, BK,
        )  # fmt: skip
        for i in range(LAYERS - 1):
            t = LAYERS - 2 - i
            tl.debug_barrier()
            _activation_backward(
                g, d_u, d_logit, pre + (row + t * step) * TOTAL, gates + (row + t * step) * (L * C),
                owned, gate_t + t * (L * C * C), scale + t * C, L, M, C, P, BE, BN, BK,
            )  # fmt: skip
            _products(d_u, g, owned, zonal_t, pairs_t, t, True, LAYERS, L, M, C, P, BE, BN, BK)
        tl.debug_barrier()
