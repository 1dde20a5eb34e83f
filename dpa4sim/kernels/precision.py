"""How exactly float32 matrices are multiplied; never a setting of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["highest", "high", "medium"]

PRECISION: dict[str, Precision] = {"exact": "highest", "high": "highest", "fast": "medium"}
"""PyTorch's words for our accuracies; its own "high" is one TF32 product, less than ours says."""


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Precision of float32 matrix products inside; the former one comes back.

    "high" is TF32 on CUDA.  "medium" allows bfloat16 operands, where the processor has them.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
