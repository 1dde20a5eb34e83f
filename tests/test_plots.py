"""Figures are drawn without a warning, from few points and many, and leave nothing behind."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from dpa4sim.plots import MANY, Crystal, draw_parity, draw_volumes

PNG = b"\x89PNG"


def crystals(n, spread, rng):
    """n made-up crystals whose relaxed volumes scatter by `spread`."""
    families = ("oxides", "halides", "elements")
    volumes = rng.uniform(5, 60, n)
    factors = 1 + spread * rng.standard_normal(n)
    return [
        Crystal(f"A{i}B2", families[i % 3], volumes[i], volumes[i] * factors[i], i % 40, i % 7 > 0)
        for i in range(n)
    ]


@pytest.mark.parametrize(("n", "spread"), [(1, 0.0), (3, 0.2), (300, 0.05)])
def test_volumes(tmp_path, n, spread):
    draw_volumes(crystals(n, spread, np.random.default_rng(0)), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("n", [1, 50, MANY + 1])
def test_parity(tmp_path, n):
    x = np.random.default_rng(0).standard_normal(n)
    panels = {"energy": (x, x + 0.1), "forces": (x, x), "stress": (x, -x)}
    draw_parity(panels, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


def test_pyplot_is_never_imported(tmp_path):
    code = (
        "import sys; from dpa4sim.plots import *; "
        "draw_volumes([Crystal('A', 'elements', 9.0, 9.1, 3, True)], sys.argv[1]); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)


def test_deviation_in_percent():
    assert Crystal("A", "elements", 10.0, 10.5, 0, True).deviation == pytest.approx(5.0)
