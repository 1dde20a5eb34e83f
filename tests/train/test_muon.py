"""HybridMuon: routes, orthogonalisation, the update rule, and what a step leaves alone."""

from __future__ import annotations

import io
from copy import deepcopy
from math import exp, sqrt
from typing import Any

import pytest
import torch
from models import FILE_SETS, random_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dpa4sim.errors import ConfigError
from dpa4sim.train.muon import (
    HybridMuon,
    alignment,
    kind_of,
    matrix_blocks,
    parameter_groups,
)
from dpa4sim.train.polar import (
    NORM_FLOOR,
    POLAR_EXPRESS,
    SCHEDULE,
    gram_newton_schulz,
    newton_schulz,
)

ROUNDING = 1e-10
"""Two float64 sums in another order, amplified by at most 1e3 in the polar iterations."""

EXAMPLES = {
    "adam": """species_table charge_spin.charge_table charge_spin.spin_table charge_spin.mix_bias
        basis.parameter radial.scales.0 environment.species_table environment.scale_norm
        environment.shift_norm environment.scale_strength_log environment.radial.inner_bias
        blocks.0.norm_before.scale blocks.0.norm_after.bias blocks.0.ffn_norm_before.0.scale
        blocks.0.ffn_scales.0 blocks.0.feed_forward.0.widen.bias
        blocks.0.feed_forward.0.product.gate_bias blocks.0.convolution.mix_in.bias
        blocks.0.convolution.stack.biases.0 blocks.0.convolution.stack.gate_biases.0
        blocks.0.convolution.stack.scales.0 blocks.0.convolution.stack.norm_scales.0
        blocks.0.convolution.stack.norm_biases.0 blocks.0.convolution.focus_norm
        blocks.0.convolution.focus_bias blocks.0.convolution.query_key_norm
        blocks.0.convolution.gate_norm blocks.0.convolution.null_logit head.biases.0 head.out""",
    "adamw": """blocks.0.convolution.radial_logit blocks.0.convolution.gate_weight
        blocks.0.convolution.focus_weight""",
    "muon": """charge_spin.mix radial.weights.0 radial.out environment.pair.inner environment.out
        blocks.0.convolution.mix_in.weight blocks.0.convolution.mix_out.weight
        blocks.0.convolution.profile_mix blocks.0.convolution.product.weight
        blocks.0.convolution.stack.zonal.1 blocks.0.convolution.stack.pairs.1.0
        blocks.0.convolution.stack.gates.0 blocks.0.convolution.query blocks.0.convolution.key
        blocks.0.convolution.message_grid.expand.weight
        blocks.0.convolution.message_grid.contract.weight
        blocks.0.convolution.message_grid.product.left
        blocks.0.convolution.message_grid.product.router
        blocks.0.feed_forward.0.widen.weight blocks.0.feed_forward.0.narrow.weight
        blocks.0.feed_forward.0.product.gate readout.units.0.widen.weight head.weights.0""",
}
"""Tensor names of ours -> the rule that moves them; the parity test has DeePMD-kit confirm it."""


def test_each_tensor_has_its_rule() -> None:
    found: dict[str, set[str]] = {}
    for option, config in FILE_SETS.items():
        if option == "degree_0":  # where a matrix may have one column
            continue
        for group in parameter_groups(random_model(config), lr=1.0):
            for name, _ in group["params"]:
                found.setdefault(name, set()).add(group["kind"])
    for kind, names in EXAMPLES.items():
        for name in names.split():
            assert found[name] == {kind}, name


def test_groups_hold_every_trainable_tensor_once_with_its_decay() -> None:
    model = random_model(FILE_SETS["focuses"])
    model.species_table.requires_grad_(False)
    groups = parameter_groups(model, lr=0.1, weight_decay=0.3)
    named = [pair for group in groups for pair in group["params"]]
    assert {name for name, _ in named} == {
        name for name, _ in model.named_parameters() if name != "species_table"
    }
    assert len({id(p) for _, p in named}) == len(named)
    assert {g["kind"]: g["weight_decay"] for g in groups} == {"muon": 0.3, "adam": 0, "adamw": 0.3}
    plain = parameter_groups(model, lr=0.1, muon=False)
    assert {group["kind"] for group in plain} == {"adam", "adamw"}


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((3, 4), (1, 3, 4)),
        ((5, 3, 4), (5, 3, 4)),
        ((2, 5, 3, 4), (10, 3, 4)),
        ((5, 1, 4), (1, 5, 4)),
        ((4, 1), None),
        ((), None),
    ],
)
def test_matrices_of_a_tensor(shape: tuple[int, ...], blocks: tuple[int, ...] | None) -> None:
    assert matrix_blocks(shape) == blocks
    assert kind_of("any", shape) == ("muon" if blocks else "adam")


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 6, 15)])
def test_polar_factor_keeps_singular_vectors_and_levels_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    diagonal = u.mT @ polar(x) @ v.mT
    values = diagonal.diagonal(dim1=1, dim2=2)
    assert (diagonal - torch.diag_embed(values)).abs().max() < ROUNDING
    assert 0.6 < values.min() < values.max() < 1.2
    assert torch.allclose(polar(100 * x), polar(x), atol=1e-5)


def test_gram_stacks_do_not_know_of_each_other_and_padding_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    wide, wider = (torch.randn(2, 5, n, dtype=torch.float64, generator=generator) for n in (7, 11))
    together = gram_newton_schulz([wide, wider], torch.float64)
    padded = nn.functional.pad(wide, (0, 4))
    for x, got in ((wide, together[0]), (wider, together[1])):
        assert (polar(x) - got).abs().max() < ROUNDING
    assert (polar(padded)[:, :, :7] - together[0]).abs().max() < ROUNDING


def test_zero_stays_zero() -> None:
    for shape in ((1, 4, 4), (1, 4, 6)):
        assert torch.equal(polar(torch.zeros(shape)), torch.zeros(shape))


def test_alignment_is_1_parallel_0_opposite_and_one_half_across() -> None:
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    across = torch.zeros_like(x)
    across[0, 0, 0], across[0, 0, 1] = x[0, 0, 1], -x[0, 0, 0]
    got = torch.cat([alignment(y, x) for y in (2 * x, -x, across, 0 * x)])
    assert torch.allclose(got, torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("magma", [True, False])
def test_steps_follow_the_equations_one_matrix_at_a_time(magma: bool) -> None:
    shapes = [(4, 4), (3, 7, 5), (7, 5), (5, 7), (6, 4, 4)]
    parameters = drawn(shapes, 2)
    expected = [p.detach().clone() for p in parameters]
    plain = [PlainMuon(p, 0.1, 0.3, magma) for p in expected]
    optimizer = HybridMuon(parameters, lr=0.1, weight_decay=0.3, magma=magma)
    for step in range(3):
        for p, gradient, one in zip(parameters, drawn(shapes, 3 + step), plain, strict=True):
            p.grad = gradient.detach()
            one.step(p.grad)
        optimizer.step()
    for p, want in zip(parameters, expected, strict=True):
        assert (p - want).abs().max() < ROUNDING


def test_half_precision_stays_near() -> None:
    moved = []
    for precision in ("full", "half"):
        (p,) = drawn([(16, 16)], 4, torch.float32)
        before, p.grad = p.detach().clone(), drawn([(16, 16)], 5, torch.float32)[0].detach()
        HybridMuon([p], lr=1.0, precision=precision).step()
        moved.append(p.detach() - before)
    off = (moved[0] - moved[1]).norm() / moved[0].norm()
    assert 0 < off < 0.02


def test_skip_keeps_every_bit_and_a_false_one_changes_none() -> None:
    model, optimizer = stepped_model()
    twin, other = deepcopy((model, optimizer))
    before = bits(model, optimizer)
    for p in model.parameters():
        p.grad.fill_(torch.nan)  # type: ignore[union-attr]
    optimizer.step(skip=torch.tensor(True))
    assert bits(model, optimizer) == before
    for one, chosen, skip in ((model, optimizer, torch.tensor(False)), (twin, other, None)):
        fill_gradients(one, 9)
        chosen.step(skip=skip)
    assert bits(model, optimizer) == bits(twin, other)
    assert bits(model, optimizer) != before


def test_a_step_never_reads_the_device_nor_leaves_it() -> None:
    """A fake tensor has no numbers: reading one raises, and so does mixing it with the host's."""
    with FakeTensorMode():
        optimizer = on_fake_cuda()
        optimizer.step(skip=torch.empty((), dtype=torch.bool, device="cuda"))
        state = optimizer.state_dict()
        for one in state["state"].values():
            one |= {key: torch.empty(value.shape) for key, value in one.items()}
        other = on_fake_cuda()
        other.load_state_dict(state)
        other.step()
        for one in other.state.values():
            assert {value.device.type for value in one.values()} == {"cuda"}


def test_state_survives_a_file_bit_for_bit() -> None:
    model, optimizer = stepped_model()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = deepcopy(model)
    other = HybridMuon(parameter_groups(twin, lr=7.0))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert bits(model, optimizer) == bits(twin, other)
    for one, chosen in ((model, optimizer), (twin, other)):
        fill_gradients(one, 5)
        chosen.step()
    assert bits(model, optimizer) == bits(twin, other)


def test_no_gradient_no_move_and_the_closure_runs() -> None:
    moved, still = drawn([(4, 4), (4, 4)], 6)
    before = still.detach().clone()
    optimizer = HybridMuon([moved, still], lr=0.1)

    def closure() -> Tensor:
        loss = moved.square().sum()
        loss.backward()
        return loss

    start = moved.detach().clone()
    assert optimizer.step(closure) == start.square().sum()
    assert torch.equal(still, before)
    assert still not in optimizer.state
    assert not torch.equal(moved, start)


def test_a_change_of_rate_scales_the_change() -> None:
    changes = []
    for rate in (0.1, 0.2):
        (p,) = drawn([(4, 6)], 7)
        before, p.grad = p.detach().clone(), drawn([(4, 6)], 8)[0].detach()
        optimizer = HybridMuon([p], lr=5.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        changes.append(p.detach() - before)
    assert torch.allclose(2 * changes[0], changes[1])


@pytest.mark.parametrize(
    ("parameter", "group", "message"),
    [
        (torch.zeros(3), {}, "no matrix for Muon"),
        (torch.zeros(3), {"kind": "sgd"}, "muon, adam, adamw"),
        (torch.zeros(3, 3, dtype=torch.bfloat16), {}, "autocast"),
    ],
)
def test_what_it_cannot_move_is_named(parameter: Tensor, group: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HybridMuon([{"params": [("w", nn.Parameter(parameter))]} | group])


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="half"):
        HybridMuon(drawn([(3, 3)], 0), precision="double")


def polar(x: Tensor) -> Tensor:
    square = x.shape[1] == x.shape[2]
    return newton_schulz(x, x.dtype) if square else gram_newton_schulz([x], x.dtype)[0]


def drawn(
    shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float64
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in shapes]


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def on_fake_cuda() -> HybridMuon:
    """Matrices and a vector with gradients, inside a FakeTensorMode."""
    kinds = {"muon": [(4, 4), (3, 4, 6), (6, 4)], "adamw": [(5,)]}
    groups = []
    for kind, shapes in kinds.items():
        parameters = [nn.Parameter(torch.empty(shape, device="cuda")) for shape in shapes]
        for p in parameters:
            p.grad = torch.empty_like(p)
        groups.append({"params": parameters, "kind": kind})
    return HybridMuon(groups)


def stepped_model() -> tuple[nn.Module, HybridMuon]:
    """A network after two steps, so that every state is there."""
    model = random_model(FILE_SETS["focuses"]).float()
    optimizer = HybridMuon(parameter_groups(model, lr=0.1))
    for seed in (3, 4):
        fill_gradients(model, seed)
        optimizer.step()
    return model, optimizer


def bits(model: nn.Module, optimizer: HybridMuon) -> list[bytes]:
    tensors = [p.detach() for p in model.parameters()]
    for p in model.parameters():
        tensors += [optimizer.state[p][key] for key in sorted(optimizer.state[p])]
    return [tensor.contiguous().numpy().tobytes() for tensor in tensors]


class PlainMuon:
    """Eq. 75-83 for each matrix by itself, by the polynomials of its singular values."""

    def __init__(self, weight: Tensor, rate: float, decay: float, magma: bool) -> None:
        self.weight, self.rate, self.decay, self.magma = weight, rate, decay, magma
        blocks = weight.reshape(-1, *weight.shape[-2:])
        self.momentum = [torch.zeros_like(block) for block in blocks]
        self.score = [0.5 for _ in blocks]

    def step(self, gradient: Tensor) -> None:
        blocks = self.weight.view(-1, *self.weight.shape[-2:])
        for index, g in enumerate(gradient.reshape(blocks.shape)):
            m = self.momentum[index] = 0.95 * self.momentum[index] + 0.05 * g
            u, values, v = torch.linalg.svd(0.95 * m + 0.05 * g, full_matrices=False)
            square = g.shape[0] == g.shape[1]
            values = values / (values.norm() + (0 if square else NORM_FLOOR))
            for a, b, c in SCHEDULE if square else POLAR_EXPRESS:
                values = a * values + b * values**3 + c * values**5
            cosine = float((m * g).sum() / (m.norm() * g.norm()))
            low, high = 1 / (1 + exp(0.5)), 1 / (1 + exp(-0.5))
            r = (1 / (1 + exp(-cosine / 2)) - low) / (high - low)
            self.score[index] = 0.9 * self.score[index] + 0.1 * r
            damping = 0.1 + 0.9 * self.score[index] if self.magma else 1.0
            change = 0.18 * sqrt(max(g.shape)) * damping * (u * values) @ v
            blocks[index] *= 1 - self.rate * self.decay
            blocks[index] -= self.rate * change
