"""The grid product in Triton against `GridProduct`; test_triton_kernels.py runs this."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernels.triton_laws.problems import DEVICE, DTYPES, assert_close

from dpa4sim.errors import ConfigError
from dpa4sim.kernels import triton_tiles
from dpa4sim.kernels.triton_grid import grid_product
from dpa4sim.model.grid import GridProduct, GridTables, rotation_grid, sphere_grid

CASES = {  # tables, channels, atoms
    "sphere_1": (sphere_grid(1), 8, 3),
    "sphere_3": (sphere_grid(3), 20, 2),
    "rotations": (rotation_grid(2, 1), 6, 2),
    "no_degrees": (sphere_grid(0), 8, 2),
    "no_atoms": (sphere_grid(2), 8, 0),
}
NAMES = ("product", "a", "b", "gate matrix")


def fields(tables: GridTables, channels: int, atoms: int) -> list[torch.Tensor]:
    """Two fields and a gate matrix, float64."""
    generator = torch.Generator().manual_seed(3)
    shape = 2, atoms, tables.to_grid.shape[1], channels
    a, b = torch.randn(shape, generator=generator, dtype=torch.float64).unbind(0)
    return [a, b, torch.randn(2 * channels, channels, generator=generator, dtype=torch.float64)]


def reference(tables: GridTables, a, b, gate):
    """`GridProduct.forward` with a gate matrix that is an input."""
    module = GridProduct(tables, a.shape[2], "product").double()
    module.gate.requires_grad_(False)
    return torch.func.functional_call(module, {"gate": gate}, (a, b))


def by_kernel(tables: GridTables, a, b, gate, accuracy="exact"):
    pair = torch.cat([a[:, 0], b[:, 0]], -1)
    to_grid, from_grid = (t.to(a.device, a.dtype) for t in (tables.to_grid, tables.from_grid))
    return grid_product(a, b, pair, pair @ gate, to_grid, from_grid, accuracy)


def gradients(function, tables, inputs):
    leaves = [tensor.detach().clone().requires_grad_(True) for tensor in inputs]
    out = function(tables, *leaves)
    probe = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), leaves)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name, dtype):
    tables, channels, atoms = CASES[name]
    inputs = fields(tables, channels, atoms)
    found = gradients(by_kernel, tables, [tensor.to(DEVICE, dtype) for tensor in inputs])
    for what, ours, theirs in zip(NAMES, found, gradients(reference, tables, inputs), strict=True):
        assert_close(ours, theirs, what)


def test_channels_pass_in_blocks_and_points_in_parts(monkeypatch):
    for name in ("grid_forward", "grid_backward"):
        tile = replace(triton_tiles.DEFAULT[name], block=16, columns=16)
        monkeypatch.setitem(triton_tiles.DEFAULT, name, tile)
    tables, channels, atoms = CASES["sphere_3"]
    inputs = fields(tables, channels, atoms)
    found = gradients(by_kernel, tables, [tensor.to(DEVICE, DTYPES[0]) for tensor in inputs])
    for what, ours, theirs in zip(NAMES, found, gradients(reference, tables, inputs), strict=True):
        assert_close(ours, theirs, what)


def test_an_atom_does_not_notice_the_others():
    tables, channels, _ = CASES["sphere_3"]
    inputs = [tensor.to(DEVICE, DTYPES[0]) for tensor in fields(tables, channels, 3)]
    a, b, gate = inputs
    pair = torch.cat([a[:, 0], b[:, 0]], -1)
    logit = pair @ gate
    grids = [t.to(a) for t in (tables.to_grid, tables.from_grid)]
    together = grid_product(a, b, pair, logit, *grids, "exact")
    for atom in range(3):
        one = slice(atom, atom + 1)
        alone = grid_product(a[one], b[one], pair[one], logit[one], *grids, "exact")
        assert torch.equal(alone, together[one])


def test_an_unknown_accuracy_is_refused():
    tables, channels, atoms = CASES["sphere_1"]
    inputs = [tensor.to(DEVICE, DTYPES[0]) for tensor in fields(tables, channels, atoms)]
    with pytest.raises(ConfigError, match="Choose one of"):
        by_kernel(tables, *inputs, accuracy="best")
