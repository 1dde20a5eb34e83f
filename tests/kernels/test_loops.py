"""Loops between the matrix products of an edge: compiled as PyTorch, once, and a way without."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from models import BASE, crystal, molecule, random_model, random_potential

from dpa4sim.batch import Batch
from dpa4sim.kernels import edge_convolution, gather, loops
from dpa4sim.kernels.activations import (
    ActivationLoops,
    ActivationShape,
    activate,
    activate_backward,
    pair_columns,
)
from dpa4sim.kernels.frame_products import FrameShape
from dpa4sim.kernels.loops import Run, open_loops
from dpa4sim.model.frames import degree_of_lm

ROUNDING = 1e-13
"""Numbers of order one in float64; a compiler fuses freely."""

WIDTH, EDGES = 3, 5


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """An empty cache of this test's own, on the disk and in the process."""
    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path))
    open_loops.cache_clear()
    yield tmp_path
    open_loops.cache_clear()


def frame(max_degree: int, max_order: int) -> FrameShape:
    lm = torch.tensor(degree_of_lm(max_degree))
    return FrameShape(WIDTH, 1, max_degree, max_order, torch.ones(len(lm)), lm)


def plain(shape: Any) -> tuple[Run, ...]:
    """What would be compiled, called as it is."""

    def run(loop, flat):
        rest = iter(flat)
        arguments = [
            [next(rest) for _ in example] if isinstance(example, list) else next(rest)
            for example in loop.inputs
        ]
        return list(loop.function(*arguments))

    return tuple(partial(run, loop) for loop in shape.loops())


def numbers(shape: ActivationShape, n_edges: int, seed: int = 0) -> list[torch.Tensor]:
    """x, u, logits, scale, dx, and what is common to -m and +m."""
    draw = torch.Generator().manual_seed(seed)
    total, gates = sum(shape.sizes), shape.max_degree * shape.width
    sizes = [(n_edges, total)] * 2 + [(n_edges, gates), (shape.width,), (n_edges, total)]
    sizes += [(n_edges, n) for n in shape.sizes[2::2]]
    return [torch.randn(size, generator=draw, dtype=shape.dtype) for size in sizes]


def both_ways(
    shape: ActivationShape, n_edges: int, runs: tuple[Run, ...] | None
) -> list[torch.Tensor]:
    """Everything that both directions write."""
    s = frame(shape.max_degree, shape.max_order)
    x, u, gate, scale, dx, *common = numbers(shape, n_edges)
    scale, common = scale if shape.scaled else None, common if shape.summed else []
    sums = [torch.full_like(value, torch.nan) for value in common]
    loops = None if runs is None else ActivationLoops(shape, *runs)
    activate(x, u, gate, scale, sums, s, loops)
    du, d_logit = torch.full_like(x, torch.nan), torch.full_like(gate, torch.nan)
    d_sums = [torch.full_like(value, torch.nan) for value in common]
    activate_backward(dx, u, gate, scale, common, du, d_logit, d_sums, s, loops)
    return [x, gate, *sums, dx, du, d_logit, *d_sums]


SHAPES = [
    ActivationShape(WIDTH, 3, 1, True, True, torch.float64),
    ActivationShape(WIDTH, 2, 1, False, False, torch.float64),
    ActivationShape(WIDTH, 3, 2, True, True, torch.float64),
    ActivationShape(WIDTH, 2, 0, False, False, torch.float64),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_compiled_is_what_pytorch_does(shape):
    found, expected = (both_ways(shape, EDGES, runs) for runs in (plain(shape), None))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cotangents_are_those_of_autograd(shape):
    """Of x + act(u), whose gates come from logits; the common part is added to dx first."""
    s = frame(shape.max_degree, shape.max_order)
    _, u, logit, scale, dx, *common = numbers(shape, EDGES)
    found = both_ways(shape, EDGES, None)
    d_u, d_logit = found[-2 - shape.summed * shape.max_order :][:2]
    u, logit = u.requires_grad_(True), logit.requires_grad_(True)
    parts = u.split_with_sizes(shape.sizes, 1)
    gate = torch.sigmoid(logit)
    act = [torch.nn.functional.silu(parts[0]) * (scale if shape.scaled else 1)]
    act += [part * gate[:, -part.shape[1] :] for part in parts[1:]]
    for (minus, plus), value in zip(pair_columns(s), common, strict=True):
        if shape.summed:
            dx[:, minus] += value
            dx[:, plus] += value
    wanted = torch.autograd.grad(torch.cat(act, 1), (u, logit), dx)
    torch.testing.assert_close((d_u, d_logit), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("max_degree", "max_order"), [(3, 1), (2, 0)])
def test_a_compiled_potential_takes_the_loops(max_degree, max_order, monkeypatch):
    """Both directions, in every layer but the last, to the numbers of the eager kernel."""
    asked = []
    monkeypatch.setattr(gather, "open_loops", lambda shape: asked.append(shape) or plain(shape))
    monkeypatch.setattr(
        edge_convolution, "open_loops", lambda shape: asked.append(shape) or plain(shape)
    )
    monkeypatch.setattr(edge_convolution, "GAUSS", (3, 1))
    config = replace(BASE, so2_layers=3, max_degree=max_degree, max_order=max_order)
    potential = random_potential(config)
    batch = Batch.concatenate([molecule(), crystal()])
    monkeypatch.setattr(edge_convolution, "CHUNK_EDGES", 10**6)
    expected = potential(batch)
    assert not asked, "nobody asked for loops"
    potential.model.use_compiled_loops(True)
    found = potential(batch)
    assert len(asked) == (4 + 2) * config.n_blocks * config.n_focus
    torch.testing.assert_close(found.forces, expected.forces, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.energy, expected.energy, rtol=1e-12, atol=1e-11)


def test_without_a_compiler_the_kernel_goes_on(monkeypatch, empty_cache, capsys):
    def broken(*_, **__):
        raise RuntimeError("No working C++ compiler found\nand a long trace")

    monkeypatch.setattr(loops, "package", broken)
    model = random_model(BASE).requires_grad_(False)
    assert open_loops(ActivationShape(4, 1, 1, False, False, torch.float64)) is None
    assert open_loops(ActivationShape(4, 1, 1, False, False, torch.float64)) is None
    said = capsys.readouterr().err
    assert said.count("run uncompiled: No working C++ compiler found") == 1
    assert "long trace" not in said
    assert model.blocks[0].convolution.compiled_loops is False


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPA4SIM_CACHE", str(tmp_path / "file" / "cache"))
    open_loops.cache_clear()
    assert open_loops(SHAPES[0]) is None
    assert "run uncompiled" in capsys.readouterr().err
    open_loops.cache_clear()


def test_without_loops_of_the_gather_the_others_run(monkeypatch):
    """Orders beyond the first: no loop of the gather, which would be too long a program."""
    asked = []
    monkeypatch.setattr(gather, "open_loops", lambda shape: pytest.fail(f"{shape}"))
    monkeypatch.setattr(
        edge_convolution, "open_loops", lambda shape: asked.append(shape) or plain(shape)
    )
    potential = random_potential(replace(BASE, max_degree=2, max_order=2))
    expected = potential(crystal())
    potential.model.use_compiled_loops(True)
    torch.testing.assert_close(potential(crystal()).forces, expected.forces, rtol=0, atol=1e-11)
    assert {shape.max_order for shape in asked} == {2}


@pytest.mark.slow
def test_one_file_for_any_number_of_edges(empty_cache, capsys):
    shape = SHAPES[0]
    opened = open_loops(shape)
    assert opened is not None
    assert capsys.readouterr().err.count("compiling a loop") == 2
    for n_edges in (1, 2, EDGES, 300):
        found, expected = (both_ways(shape, n_edges, way) for way in (opened, None))
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)
    again = both_ways(shape, EDGES, opened)
    assert all(map(torch.equal, again, both_ways(shape, EDGES, opened))), "the same bits"
    open_loops.cache_clear()
    assert open_loops(shape) is not None
    assert capsys.readouterr().err == "", "the next process finds it"
    assert len(list(empty_cache.glob("*.pt2"))) == 2
