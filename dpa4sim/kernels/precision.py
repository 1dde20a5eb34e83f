"""How exactly float32 matrices are multiplied; never a setting of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["highest", "high", "medium"]

LONG_ENOUGH = 4_000_000
"""Multiply-adds of a product from which on shorter numbers pay for the preparation that they take:
12 microseconds by measurement, a fifth of what such a product takes in float32."""


def product_precision(accuracy: str, device: torch.device) -> Precision:
    """PyTorch's word for our accuracies; its own "high" is one TF32 product, less than ours says.

    On a processor "medium" multiplies bfloat16 numbers by AMX only.  Elsewhere, AVX512_BF16
    included, it is float32 by another library: no faster at all when many products are small.
    """
    if accuracy != "fast":
        return "highest"
    return "medium" if device.type != "cpu" or has_short_products() else "highest"


def has_short_products() -> bool:
    """Whether this processor multiplies matrices of bfloat16 numbers faster than of float32."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def by_size(precision: str, multiply_adds: int) -> Precision:
    """The precision that was asked for, where a product is large enough."""
    return "medium" if precision == "medium" and multiply_adds >= LONG_ENOUGH else "highest"


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Precision of float32 matrix products inside; the former one comes back.

    "high" is TF32 on CUDA.  "medium" allows bfloat16 operands.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
