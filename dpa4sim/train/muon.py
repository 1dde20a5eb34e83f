"""HybridMuon: Muon for matrices, Adam for the rest.  Paper section 4.3, S-2.3 and S-2.4.

| paper | here |
|---|---|
| blocks G^(b), Eq. 74 | `matrix_blocks` |
| M, U, Eq. 75-76      | `_Stack.momentum`, `_Stack.update` |
| polar factor Q       | `dpa4sim.train.polar` |
| Eq. 79               | `RMS_SCALE` sqrt(max(m, n)) |
| Magma-lite, Eq. 80-83 | `alignment`, `_Stack.damp` |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, prod, sqrt
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim.adam import adam

from dpa4sim.errors import ConfigError
from dpa4sim.train.polar import gram_newton_schulz, newton_schulz

Kind = Literal["muon", "adam", "adamw"]
KINDS = ("muon", "adam", "adamw")
PRECISIONS = ("auto", "half", "full")

RMS_SCALE = 0.18
TEMPERATURE = 2.0
SCORE_DECAY = 0.9
SCORE_START = 0.5
SMALLEST_STEP = 0.1
COSINE_FLOOR = 1e-12

OF_MOMENTS = ("moment_features.own", "moment_features.of_neighbor")
PLAIN_ENDINGS = (
    *("table", "bias", "biases", "scales", "norm", "null_logit", "basis.parameter"),
    *OF_MOMENTS,
)
"""Tensors of ours that the reference sends to Adam without decay whatever their shape."""
DECAYED_ENDINGS = ("radial_logit", "gate_weight", "focus_weight")
"""Tensors of ours that the reference sends to AdamW whatever their shape."""


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 1e-3, muon: bool = True
) -> list[dict[str, Any]]:
    """The trainable tensors of a DPA4 in groups "muon", "adam" and "adamw", as the reference has.

    Args:
        lr: largest learning rate, the same for all groups.
        weight_decay: decoupled; none in the group "adam".
        muon: False sends the matrices to "adamw".
    """
    members: dict[Kind, list[tuple[str, nn.Parameter]]] = {"muon": [], "adam": [], "adamw": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = kind_of(name, parameter.shape)
            members["adamw" if kind == "muon" and not muon else kind].append((name, parameter))
    return [
        {
            "params": named,
            "kind": kind,
            "lr": lr,
            "weight_decay": 0.0 if kind == "adam" else weight_decay,
        }
        for kind, named in members.items()
        if named
    ]


def kind_of(name: str, shape: Sequence[int]) -> Kind:
    """Which rule moves a tensor of a DPA4: by its name, else Muon if it has a matrix."""
    stem = ".".join(word for word in name.split(".") if not word.isdigit())
    if stem.endswith(DECAYED_ENDINGS):
        return "adamw"
    in_norm = stem.endswith(".scale") and "norm" in stem.split(".")[-2]
    if in_norm or stem.endswith(PLAIN_ENDINGS) or matrix_blocks(shape) is None:
        return "adam"
    return "muon"


def matrix_blocks(shape: Sequence[int]) -> tuple[int, int, int] | None:
    """(B, m, n) of a tensor without its axes of length 1: trailing matrices.  Eq. 74

    None where fewer than two axes are left.
    """
    axes = [n for n in shape if n != 1]
    return (prod(axes[:-2]), axes[-2], axes[-1]) if len(axes) > 1 else None


def alignment(
    momentum: Float[Tensor, "block m n"], gradient: Float[Tensor, "block m n"]
) -> Float[Tensor, " block"]:
    """Agreement of momentum and gradient from 0 (opposite) to 1 (parallel).  Eq. 80-81"""
    low, high = (1 / (1 + exp(sign / TEMPERATURE)) for sign in (1, -1))
    norms = torch.linalg.matrix_norm(momentum) * torch.linalg.matrix_norm(gradient)
    cosine = (momentum * gradient).sum((1, 2)) / (norms + COSINE_FLOOR)
    return ((torch.sigmoid(cosine / TEMPERATURE) - low) / (high - low)).clamp(0, 1)


class HybridMuon(torch.optim.Optimizer):
    """Muon, Adam or AdamW, as each parameter group's `kind` says.  Eq. 75-83

        muon:   M <- beta M + (1 - beta) G,   U = beta M + (1 - beta) G,   Q = polar(U)
                W <- (1 - lr decay) W - lr 0.18 sqrt(max(m, n)) damping Q
        adam:   bias-corrected moments, no decay;   adamw: decoupled decay

    Muon takes the trailing matrices of a tensor one by one, all matrices of one shape in one
    product.  Every number stays on the device; the same gradients give the same bits.

    Args:
        params: groups of `parameter_groups`, or any; `kind` is "muon" where a group has none.
        lr: of groups that bring none; schedulers may change it.
        momentum: beta.
        weight_decay: of groups that bring none.
        betas: of Adam.
        epsilon: of Adam.
        magma: damp where momentum and gradient disagree (Eq. 80-83).
        precision: of the matrix products: "half" is bfloat16 for square and float16 for
            rectangular matrices, as the reference has it; "auto" is half on CUDA and full
            elsewhere (float16 products are 10 to 30 times slower on a CPU).

    Raises:
        ConfigError: an unknown kind or precision, no matrix in a "muon" group, or half weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-4,
        *,
        momentum: float = 0.95,
        weight_decay: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        epsilon: float = 1e-20,
        magma: bool = True,
        precision: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "betas": betas,
            "epsilon": epsilon,
            "magma": magma,
            "precision": precision,
            "kind": "muon",
            "fused": True,  # load_state_dict keeps Adam's step counts on the device
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a checked group."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["kind"] not in KINDS:
            raise ConfigError(f"kind = {group['kind']!r}. Choose one of {', '.join(KINDS)}.")
        if group["precision"] not in PRECISIONS:
            choices = ", ".join(PRECISIONS)
            raise ConfigError(f"precision = {group['precision']!r}. Choose one of {choices}.")
        names = group.get("param_names") or range(len(group["params"]))
        for name, parameter in zip(names, group["params"], strict=True):
            if parameter.dtype not in (torch.float32, torch.float64):
                raise ConfigError(
                    f"Parameter {name} is {parameter.dtype}. HybridMuon moves float32 or float64 "
                    "weights; use torch.autocast for half precision."
                )
            if group["kind"] == "muon" and matrix_blocks(parameter.shape) is None:
                raise ConfigError(
                    f"Parameter {name} of shape {tuple(parameter.shape)} has no matrix for Muon. "
                    "Put it into a group with kind='adam', or use parameter_groups(model)."
                )

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        skip: Bool[Tensor, ""] | None = None,
    ) -> Any:
        """Move the weights that have a gradient.

        Args:
            skip: on the device; where true, weights and state stay bit for bit as they are.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "muon":
                self._muon(parameters, group, skip)
            elif parameters:
                self._adam(parameters, group, skip)
        return loss

    def _adam(self, parameters: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Adam in one call; its `found_inf` is what `skip` means."""
        for p in parameters:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "mean": torch.zeros_like(p),
                    "square": torch.zeros_like(p),
                }
        gradients = [p.grad.contiguous() for p in parameters if p.grad is not None]
        means, squares, steps = (
            [self.state[p][key] for p in parameters] for key in ("mean", "square", "step")
        )
        adam(
            parameters,
            gradients,
            means,
            squares,
            [],
            steps,
            fused=True,
            found_inf=None if skip is None else skip.float(),
            decoupled_weight_decay=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0 if group["kind"] == "adam" else group["weight_decay"],
            eps=group["epsilon"],
            maximize=False,
        )

    def _muon(self, parameters: list[Tensor], group: dict[str, Any], skip: Tensor | None) -> None:
        """Muon, one stack per shape and one Gram iteration per smaller side."""
        stacks: dict[Any, _Stack] = {}
        for p in parameters:
            blocks = matrix_blocks(p.shape)
            assert blocks is not None
            if not self.state[p]:
                score = torch.full((blocks[0],), SCORE_START, dtype=p.dtype, device=p.device)
                self.state[p] = {"momentum": torch.zeros_like(p), "score": score}
            small, large = sorted(blocks[1:])
            stack = stacks.setdefault((p.device, p.dtype, small, large), _Stack(small, large))
            stack.parameters.append(p)
        by_side: dict[Any, list[_Stack]] = {}
        for (device, dtype, small, large), stack in stacks.items():
            stack.advance(self.state, group, skip)
            key = small, large if small == large else 0, device, dtype
            by_side.setdefault(key, []).append(stack)
        for (small, large, device, dtype), members in by_side.items():
            auto = "half" if device.type == "cuda" else "full"
            half = (auto if group["precision"] == "auto" else group["precision"]) == "half"
            if small == large:
                square = torch.bfloat16 if half else dtype
                factors = [newton_schulz(members[0].update, square)]
            else:
                wide = torch.float16 if half else dtype
                factors = gram_newton_schulz([stack.update for stack in members], wide)
            for stack, factor in zip(members, factors, strict=True):
                stack.move(factor.to(dtype), group, skip)


@dataclass
class _Stack:
    """All matrices of one shape, tall ones lying on their side.

    Args:
        small: rows.
        large: columns.
    """

    small: int
    large: int

    def __post_init__(self) -> None:
        self.parameters: list[Tensor] = []
        self.update = self.damping = torch.empty(0)

    def advance(self, state: dict[Any, Any], group: dict[str, Any], skip: Tensor | None) -> None:
        """New momentum and score, and the direction U.  Eq. 75-76, 80-82"""
        share = 1 - group["momentum"]
        momenta = [state[p]["momentum"] for p in self.parameters]
        scores = [state[p]["score"] for p in self.parameters]
        gradient = self._stacked([p.grad for p in self.parameters if p.grad is not None])
        before = self._stacked(momenta)
        momentum = before.lerp(gradient, share)
        self.update = momentum.lerp(gradient, share)
        if group["magma"]:
            old = torch.cat(scores)
            score = torch.lerp(alignment(momentum, gradient), old, SCORE_DECAY)
            self.damping = SMALLEST_STEP + (1 - SMALLEST_STEP) * score
            score = score if skip is None else torch.where(skip, old, score)
            torch._foreach_copy_(scores, score.split([len(one) for one in scores]))
        momentum = momentum if skip is None else torch.where(skip, before, momentum)
        torch._foreach_copy_(momenta, self._apart(momentum))

    def move(
        self, factor: Float[Tensor, "block m n"], group: dict[str, Any], skip: Tensor | None
    ) -> None:
        """Decay, then the damped and scaled polar factor.  Eq. 79, 83"""
        change = factor * (group["lr"] * RMS_SCALE * sqrt(self.large))
        if group["magma"]:
            change = change * self.damping[:, None, None]
        keep = 1 - group["lr"] * group["weight_decay"]
        if skip is None:
            torch._foreach_mul_(self.parameters, keep)
        else:
            change = torch.where(skip, torch.zeros_like(change), change)
            torch._foreach_mul_(
                self.parameters, torch.where(skip, torch.ones_like(change[0, 0, 0]), keep)
            )
        torch._foreach_sub_(self.parameters, self._apart(change))

    def _stacked(self, tensors: Sequence[Tensor]) -> Float[Tensor, "block small large"]:
        """The tensors' matrices in one stack."""
        parts = []
        for tensor in tensors:
            _, rows, columns = matrix_blocks(tensor.shape) or (0, 0, 0)
            part = tensor.reshape(-1, rows, columns)
            parts.append(part.mT if rows > columns else part)
        return torch.cat(parts)

    def _apart(self, stack: Float[Tensor, "block small large"]) -> list[Tensor]:
        """The inverse of `_stacked`."""
        blocks = [matrix_blocks(p.shape) or (0, 0, 0) for p in self.parameters]
        parts = stack.split([block[0] for block in blocks])
        return [
            (part.mT if rows > columns else part).reshape(p.shape)
            for part, p, (_, rows, columns) in zip(parts, self.parameters, blocks, strict=True)
        ]
