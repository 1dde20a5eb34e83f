"""What the Triton kernels are told, and when they are there; nothing here needs the interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dpa4sim.kernels import triton_plan, triton_tiles
from dpa4sim.kernels.edge_convolution import Layer
from dpa4sim.kernels.frame_products import FrameShape
from dpa4sim.kernels.triton_plan import EdgeGraph, PackedStack, available, frame_table, padded
from dpa4sim.model.frames import degree_of_lm, degree_of_row, order_of_row

CPU = torch.device("cpu")


def test_importing_the_package_imports_no_triton():
    code = (
        "import sys, dpa4sim.potential, dpa4sim.kernels.triton_plan; print('triton' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("interpret", "device", "dtype", "wanted"),
    [
        ("0", "cpu", torch.float32, False),
        ("0", "cuda", torch.float32, True),
        ("0", "cuda", torch.float64, False),
        ("1", "cpu", torch.float64, True),
        ("1", "cpu", torch.float16, False),
    ],
)
def test_where_the_kernels_run(monkeypatch, interpret, device, dtype, wanted):
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    assert available(device, dtype) is wanted


def test_nowhere_without_triton(monkeypatch):
    monkeypatch.setattr(triton_plan, "find_spec", lambda _: None)
    assert not available("cuda")


@pytest.mark.parametrize("padding", [0, 4])
def test_a_graph_lists_the_edges_that_arrive_at_each_atom(padding):
    generator = torch.Generator().manual_seed(1)
    neighbor = torch.randint(0, 5, (40,), generator=generator)
    neighbor[neighbor == 3] = 2  # nobody sees atom 3
    row_ptr = torch.tensor([0, 9, 9, 30, 31, 40])
    graph = EdgeGraph.build(torch.cat([neighbor, neighbor.new_full((padding,), 2)]), row_ptr)
    for atom in range(5):
        found = graph.arriving[graph.arriving_ptr[atom] : graph.arriving_ptr[atom + 1]]
        assert found.tolist() == (neighbor == atom).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("L", "M", "terms"), [(3, 1, 1), (2, 2, 2), (0, 0, 1), (4, 3, 3)])
def test_tables_say_the_same_as_the_shape(L, M, terms):
    lm = torch.tensor(degree_of_lm(L))
    shape = FrameShape(8, terms, L, M, torch.ones(len(lm)), lm)
    table = frame_table(L, M, terms, CPU)
    frame, order, degree, base, size, twin = table.rows
    assert frame.tolist() == order_of_row(L, M)
    assert order.tolist() == ((frame + 1) // 2).tolist()
    assert degree.tolist() == degree_of_row(L, M)
    assert table.degree.tolist() == lm.tolist()
    assert table.n_columns == shape.spans[-1][1]
    for m, rotation, first, last in shape.frames:
        rows = slice(first, last)
        assert set(frame[rows].tolist()) == {rotation}
        assert set(size[rows].tolist()) == {shape.sizes[m]}
        steps = torch.arange(last - first) * terms * shape.sizes[m]
        assert base[rows].tolist() == (shape.spans[m][0] + steps).tolist()
        own = next(start for n, _, start, _ in shape.frames if n == m)
        assert twin[rows].tolist() == list(range(own, own + last - first))


def test_three_products_are_the_four():
    generator = torch.Generator().manual_seed(2)
    p, q = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64).unbind(0)
    u, v = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64).unbind(0)
    pair = torch.cat([torch.cat([u, v], 1), torch.cat([-v, u], 1)])
    layer = Layer(torch.eye(12, dtype=torch.float64), (pair,), None, None)
    stack = PackedStack.build([layer], 6)
    for packed, matrix in ((stack.pairs, pair), (stack.pairs_t, pair.T)):
        a, b, c = packed.view(3, 6, 6)
        both = (p + q) @ a
        found = torch.cat([both + q @ b, both + p @ c], 1)
        torch.testing.assert_close(found, torch.cat([p, q], 1) @ matrix, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("size", "wanted"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128)])
def test_tiles_are_powers_of_two_and_not_too_small(size, wanted):
    assert padded(size) == wanted


def test_a_device_that_nobody_measured_gets_the_safe_tile(monkeypatch):
    fast = triton_tiles.Tile(128, 8, 3)
    monkeypatch.setitem(triton_tiles.MEASURED, ("H", "stack_forward", (3, 1, 64)), fast)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: device.type[0].upper() + "")
    found = triton_tiles.tile_for("stack_forward", (3, 1, 64), torch.device("cuda"))
    assert found == triton_tiles.DEFAULT["stack_forward"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H")
    assert triton_tiles.tile_for("stack_forward", (3, 1, 64), torch.device("cuda")) == fast
    found = triton_tiles.tile_for("stack_forward", (4, 1, 64), torch.device("cuda"))
    assert found == triton_tiles.DEFAULT["stack_forward"]
