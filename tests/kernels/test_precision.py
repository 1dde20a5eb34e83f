"""Shorter numbers in matrix products: where they are faster, and where they were asked for."""

from __future__ import annotations

import pytest
import torch
from models import BASE, crystal, random_model

from dpa4sim.kernels import edge_convolution, precision
from dpa4sim.kernels.precision import LONG_ENOUGH, by_size, matmul_precision, product_precision
from dpa4sim.potential import Potential


@pytest.mark.parametrize(
    ("accuracy", "has_amx", "device", "expected"),
    [
        ("exact", True, "cpu", "highest"),
        ("high", True, "cpu", "highest"),
        ("fast", True, "cpu", "medium"),
        ("fast", False, "cpu", "highest"),
        ("fast", False, "cuda", "medium"),
    ],
)
def test_a_processor_without_short_products_multiplies_exactly(
    accuracy, has_amx, device, expected, monkeypatch
):
    features = {"avx512_bf16": True, "amx_bf16": has_amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert product_precision(accuracy, torch.device(device)) == expected


def test_a_processor_of_another_kind_says_nothing_of_amx(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"sve": True})
    assert not precision.has_short_products()


def test_small_products_stay_exact():
    assert by_size("medium", LONG_ENOUGH) == "medium"
    assert by_size("medium", LONG_ENOUGH - 1) == "highest"
    assert by_size("highest", 10 * LONG_ENOUGH) == "highest"


@pytest.mark.parametrize(("enough", "expected"), [(0, "medium"), (10**9, "highest")])
def test_layers_are_short_and_sums_over_neighbours_never(enough, expected, monkeypatch):
    """In both passes; what was set before comes back."""
    seen: dict[str, set[str]] = {}

    def observe(name):
        real = getattr(edge_convolution, name)

        def observed(*inputs):
            seen.setdefault(name, set()).add(torch.get_float32_matmul_precision())
            return real(*inputs)

        monkeypatch.setattr(edge_convolution, name, observed)

    layers, sums = ("_linear", "_linear_backward"), ("sum_centers", "sum_centers_backward")
    for name in (*layers, *sums):
        observe(name)
    monkeypatch.setattr(precision, "LONG_ENOUGH", enough)
    monkeypatch.setattr("dpa4sim.potential.product_precision", lambda *_: "medium")
    Potential(random_model(BASE), accuracy="fast")(crystal())
    assert seen == {name: {expected} for name in layers} | {name: {"highest"} for name in sums}
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_setting_comes_back_after_a_failure():
    with pytest.raises(ZeroDivisionError), matmul_precision("medium"):
        1 / 0  # noqa: B018
    assert torch.get_float32_matmul_precision() == "highest"
