"""The edge pipeline in Triton against plain sums in float64; test_triton_kernels.py runs this."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernels.triton_laws.problems import (
    DEVICE,
    DTYPES,
    assert_close,
    gradients,
    moved,
    probe_of,
    problem,
    reference,
)

from dpa4sim.errors import ConfigError
from dpa4sim.kernels import triton_so2, triton_tiles
from dpa4sim.kernels.triton_convolution import triton_edge_convolution
from dpa4sim.kernels.triton_gather import gather
from dpa4sim.kernels.triton_plan import TritonPlan
from dpa4sim.kernels.triton_scatter import scatter

SHAPES = {  # L, M, channels, layers, terms, heads
    "neo": (3, 1, 16, 3, 1, 1),
    "odd_width": (2, 1, 6, 2, 1, 2),
    "one_layer": (1, 1, 20, 1, 2, 1),
    "order_0": (2, 0, 8, 2, 1, 1),
    "order_2": (3, 2, 20, 3, 2, 4),
    "order_3": (3, 3, 8, 2, 1, 1),
    "degree_0": (0, 0, 8, 2, 1, 1),
    "wide": (1, 1, 72, 2, 1, 3),
}
COUNTS = (3, 0, 7, 1, 4)
NAMES = ("messages", "node", "kernel", "rows", "alpha")


def evaluate(inputs, plan, dtype, accuracy="exact", probe=None):
    """Messages and cotangents by the kernels."""
    probe = probe_of(inputs, plan) if probe is None else probe
    inputs, plan = moved(inputs, plan, dtype)
    plan = TritonPlan.of(plan, accuracy=accuracy)
    return gradients(triton_edge_convolution, inputs, plan, probe.to(DEVICE, dtype))


def assert_equals_sums(inputs, plan, found):
    wanted = gradients(reference, inputs, plan, probe_of(inputs, plan))
    for name, ours, theirs in zip(NAMES, found, wanted, strict=True):
        assert torch.isfinite(ours).all(), name
        assert_close(ours, theirs, name)


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients(name):
    inputs, plan = problem(SHAPES[name], COUNTS)
    assert_equals_sums(inputs, plan, evaluate(inputs, plan, DTYPES[0]))


def test_values_and_gradients_in_single_precision():
    inputs, plan = problem(SHAPES["odd_width"], COUNTS)
    assert_equals_sums(inputs, plan, evaluate(inputs, plan, torch.float32))


def test_a_center_with_500_edges_and_atoms_without_any():
    inputs, plan = problem((1, 0, 4, 1, 1, 1), (0, 500, 0))
    assert_equals_sums(inputs, plan, evaluate(inputs, plan, DTYPES[0]))


def test_no_edges_at_all():
    inputs, plan = problem(SHAPES["neo"], (0, 0, 0))
    found = evaluate(inputs, plan, DTYPES[0])
    assert found[0].shape == (3, 16, 16)
    assert not any(tensor.any() for tensor in found)


@pytest.mark.parametrize("counts", [COUNTS, (0, 0, 0)])
def test_padding_is_never_read_and_gets_no_gradient(counts):
    shape = SHAPES["odd_width"]
    inputs, plan = problem(shape, counts, padding=9)
    found = evaluate(inputs, plan, DTYPES[0])
    n_edges = sum(counts)
    for tensor in found[2:]:
        assert tensor.shape[0] == n_edges + 9
        assert not tensor[n_edges:].any()
    short, _ = problem(shape, counts)
    plain = evaluate(short, replace(plan, neighbor=plan.neighbor[:n_edges]), DTYPES[0])
    for ours, theirs in zip(found, plain, strict=True):
        assert torch.equal(ours[: len(theirs)], theirs)


@pytest.mark.parametrize("name", ["neo", "order_2"])
def test_layers_passed_again_give_the_same_bits_as_layers_kept(name, monkeypatch):
    """On several tiles per program, the last one not full."""
    for direction in ("stack_forward_exact", "stack_backward_exact"):
        tile = replace(triton_tiles.DEFAULT[direction], block=16)
        monkeypatch.setitem(triton_tiles.DEFAULT, direction, tile)
    inputs, plan = problem(SHAPES[name], (30, 0, 40, 1), padding=3)
    _, plan = moved(inputs, plan, DTYPES[0])
    plan = TritonPlan.of(plan, accuracy="exact")
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(74, plan.n_rows * plan.width, generator=generator).to(DEVICE, DTYPES[0])
    found = []
    for limit in (1 << 30, -1):
        monkeypatch.setattr(triton_so2, "KEEP_BYTES", limit)
        leaf = x.clone().requires_grad_(True)
        y = triton_so2.stack(leaf, plan)[:71]
        (gradient,) = torch.autograd.grad(y.square().sum(), leaf)
        found.append((y.detach(), gradient[:71]))
    assert torch.isfinite(found[0][1]).all()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_repeats_give_the_same_bits():
    inputs, plan = problem(SHAPES["order_2"], (4, 0, 9))
    first, second = (evaluate(inputs, plan, DTYPES[-1]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def joined(systems):
    """Two problems with the same weights as one batch."""
    (one, first), (two, second) = systems
    inputs = tuple(torch.cat([a, b]) for a, b in zip(one, two, strict=True))
    neighbor = torch.cat([first.neighbor, second.neighbor + len(one[0])])
    end = first.offsets[-1]
    offsets = first.offsets + tuple(end + offset for offset in second.offsets[1:])
    return inputs, replace(first, neighbor=neighbor, offsets=offsets)


def test_sums_do_not_depend_on_company_in_the_batch():
    """Messages and the cotangents of the atoms, bit for bit."""
    one = problem(SHAPES["odd_width"], (5, 0, 9), seed=1)
    two = problem(SHAPES["odd_width"], (7, 11, 2), seed=2)
    both = joined((one, two))
    probe = probe_of(*one)
    alone = [segments(*system, probe) for system in (one, two)]
    together = segments(*both, torch.cat([probe, probe]))
    for index, name in enumerate(("messages", "node", "rows")):
        expected = torch.cat([found[index] for found in alone])
        assert torch.equal(together[index], expected), name


def segments(inputs, plan, probe):
    """The segment sums alone: messages of given edge rows, cotangents of the gather."""
    (node, kernel, rows, alpha), plan = moved(inputs, plan, DTYPES[0])
    plan = TritonPlan.of(plan, accuracy="exact")
    node, rows = (tensor.clone().requires_grad_(True) for tensor in (node, rows))
    x = gather(node, kernel, rows, plan)
    message = scatter(x, rows, alpha, plan)
    found = torch.autograd.grad((message * probe.to(message)).sum(), (node, rows))
    return message.detach(), *found


def test_slope_of_the_messages_is_the_gradient():
    """Central differences along a random direction of each input."""
    if DTYPES[0] != torch.float64:
        pytest.skip("differences need float64, which the kernels have in the interpreter only")
    inputs, plan = problem(SHAPES["odd_width"], (2, 3))
    probe = probe_of(inputs, plan)
    found = evaluate(inputs, plan, torch.float64)
    step = 1e-5
    for index, tensor in enumerate(inputs):
        direction = torch.randn(tensor.shape, dtype=tensor.dtype) * (tensor != 0)
        values = []
        for sign in (-1, 1):
            shifted = list(inputs)
            shifted[index] = tensor + sign * step * direction
            message = triton_edge_convolution(*shifted, plan)
            values.append(float((message * probe).sum()))
        slope = (values[1] - values[0]) / (2 * step)
        assert slope == pytest.approx(float((found[index + 1] * direction).sum()), rel=1e-7)


@pytest.mark.parametrize(("accuracy", "bound"), [("exact", 3e-6), ("high", 1e-5), ("fast", 1e-2)])
def test_accuracy_of_float32(accuracy, bound):
    """On a GPU the three differ; the interpreter multiplies exactly whatever is asked."""
    inputs, plan = problem(SHAPES["neo"], COUNTS)
    wanted = reference(*inputs, plan)
    found = evaluate(inputs, plan, torch.float32, accuracy)[0].cpu().double()
    assert float((found - wanted).norm() / wanted.norm()) < bound


def test_an_unknown_accuracy_is_refused():
    _, plan = problem(SHAPES["neo"], COUNTS)
    with pytest.raises(ConfigError, match=r"Choose one of 'exact', 'high', 'fast'"):
        TritonPlan.of(plan, accuracy="best")


def test_half_precision_is_refused():
    inputs, plan = problem(SHAPES["neo"], COUNTS)
    half, plan = moved(inputs, plan, torch.float16)
    with pytest.raises(ConfigError, match="need float32"):
        triton_edge_convolution(*half, plan)


def test_a_second_derivative_is_refused():
    inputs, plan = moved(*problem(SHAPES["one_layer"], (2, 1)), DTYPES[0])
    node = inputs[0].clone().requires_grad_(True)
    message = triton_edge_convolution(node, *inputs[1:], plan)
    (gradient,) = torch.autograd.grad(message.square().sum(), node, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_tiles_change_no_value(monkeypatch):
    inputs, plan = problem(SHAPES["wide"], (3, 1, 4))
    wanted = evaluate(inputs, plan, DTYPES[0])
    for name, tile in triton_tiles.DEFAULT.items():
        other = replace(tile, block=16, columns=16, depth=16)
        monkeypatch.setitem(triton_tiles.DEFAULT, name, other)
    for name, ours, theirs in zip(NAMES, evaluate(inputs, plan, DTYPES[0]), wanted, strict=True):
        assert_close(ours, theirs.cpu().double(), name)
