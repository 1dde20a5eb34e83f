"""Nearly orthogonal matrices by matrix products alone.  Paper section S-2.3, Eq. 77-78.

| paper | here |
|---|---|
| Newton-Schulz, Eq. 77 | `newton_schulz`: square matrices |
| Gram path             | `gram_newton_schulz`: rectangular ones, all of one smaller side at once |
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Triple = tuple[float, float, float]

FAST: Triple = (3.4445, -4.7750, 2.0315)
POLISH: Triple = (2.0, -1.5, 0.5)
SCHEDULE = (FAST,) * 8 + (POLISH,) * 2
"""Coefficients (a, b, c) of Eq. 77, step by step."""

SAFETY = 1.05
POLAR_EXPRESS: tuple[Triple, ...] = tuple(
    (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    )
)
"""The first five triples of Polar Express for singular values up to 1 / SAFETY of the last step."""

RESTART = 2
"""Step of the Gram path that forms the Gram matrix anew, so that rounding does not pile up."""
NORM_FLOOR = 1e-7


def newton_schulz(x: Float[Tensor, "block n n"], dtype: torch.dtype) -> Float[Tensor, "block n n"]:
    """Replace the singular values of each matrix by about 1.  Eq. 77

        X <- a X + (b A + c A^2) X,   A = X X^T,   from X = U / |U|

    Commutes with rotations of rows and of columns; 0 stays 0.
    """
    x = x.to(dtype)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=NORM_FLOOR)
    for a, b, c in SCHEDULE:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def gram_newton_schulz(
    matrices: Sequence[Float[Tensor, "_ m _"]], dtype: torch.dtype
) -> list[Float[Tensor, "_ m _"]]:
    """The same for stacks of wide matrices with one smaller side m, by their m x m Gram matrices.

        P = a I + b R + c R^2,   Q <- P Q,   R <- P R P,   X <- Q X at the end,   R = X X^T

    One iteration serves all stacks whatever their longer side: only products with X see it, so no
    column needs padding (the paper pads; Eq. 78 says that the numbers are the same).

    Args:
        dtype: of the iteration; norms are taken in the precision of the matrices.
    """
    stacks = []
    for x in matrices:
        norm = torch.linalg.matrix_norm(x, keepdim=True)
        stacks.append((x / (norm + NORM_FLOOR)).to(dtype))
    sizes = [len(x) for x in stacks]
    gram, product = torch.cat([x @ x.mT for x in stacks]), None
    for step, (a, b, c) in enumerate(POLAR_EXPRESS):
        if product is not None and step == RESTART:
            stacks = [q @ x for q, x in zip(product.split(sizes), stacks, strict=True)]
            gram, product = torch.cat([x @ x.mT for x in stacks]), None
        z = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if product is None:
            product = z.clone()
            product.diagonal(dim1=1, dim2=2).add_(a)
        else:
            product = torch.baddbmm(product, product, z, beta=a)
        if step + 1 not in (RESTART, len(POLAR_EXPRESS)):
            gram = torch.baddbmm(gram, gram, z, beta=a)
            gram = torch.baddbmm(gram, z, gram, beta=a)
    assert product is not None
    return [q @ x for q, x in zip(product.split(sizes), stacks, strict=True)]
