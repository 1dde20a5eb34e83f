"""Branches: one trunk that learns from several sets of labels at once.

Sets of different theories disagree on what energy means.  All branches share the trunk; each has
energy shifts of its own, and a head that is its own or hears which branch is asked:

| head | what a branch has of its own |
|---|---|
| "own" | all weights of the head |
| "film" | a scale and a shift of the head's features, made by one small network (`Modulation`) |
| "concat" | a row of the head's first matrix: a bias |
| "shared" | nothing but the energy shifts |

A chosen branch is a constant, and a constant folds into the matrices: `BranchedDPA4.network` gives
a plain DPA4 with the same energies.  Not in the paper; the reference's `case_film_embd`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import silu

from dpa4sim.errors import ConfigError
from dpa4sim.model.dpa4 import DPA4
from dpa4sim.model.linear import truncated_normal
from dpa4sim.model.readout import EnergyHead

HeadKind = Literal["film", "concat", "own", "shared"]
FIRST_STRENGTH = 0.01

Factors = Sequence[tuple[Tensor, Tensor]]
"""Scale and shift of each feature that a head's matrices take in, from the descriptor on."""


class Modulation(nn.Module):
    """Scale and shift of the head's features, one pair per branch (FiLM).

        c = silu(b W_1) W_2,   [gamma_t, beta_t] = c P_t
        x_t <- x_t (1 + e^a_t tanh gamma_t) + e^s_t tanh beta_t

    b is the branch as a one-hot vector; x_0 is the descriptor and x_t the output of hidden layer t.
    The P_t are zero at the start, and every branch is the head as it is.

    Args:
        n_branches: length of b.
        widths: of x_0, x_1, ...; the code c is four times as long as the first.
    """

    def __init__(self, n_branches: int, widths: Sequence[int]) -> None:
        super().__init__()
        hidden, code = modulation_widths(n_branches, widths[0])
        self.inner = nn.Parameter(truncated_normal(torch.empty(n_branches, hidden)))
        self.outer = nn.Parameter(truncated_normal(torch.empty(hidden, code)))
        self.projectors = nn.ParameterList(torch.zeros(code, 2 * width) for width in widths)
        self.scale_strength_log = nn.Parameter(torch.full((len(widths),), log(FIRST_STRENGTH)))
        self.shift_strength_log = nn.Parameter(torch.full((len(widths),), log(FIRST_STRENGTH)))

    def forward(self, case: Float[Tensor, " branch"]) -> Factors:
        """Scale and shift of each x_t."""
        return modulation_factors(case, dict(self.named_parameters()))


def modulation_widths(n_branches: int, channels: int) -> tuple[int, int]:
    """Hidden width of the small network, four per branch rounded up to 32, and of its code."""
    return 32 * -(-4 * n_branches // 32), 4 * channels


def modulation_factors(
    case: Float[Tensor, " branch"], tensors: Mapping[str, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """1 + e^a_t tanh gamma_t and e^s_t tanh beta_t of `Modulation` from its tensors, by name."""
    code = silu(case @ tensors["inner"]) @ tensors["outer"]
    scales = tensors["scale_strength_log"].exp()
    shifts = tensors["shift_strength_log"].exp()
    found = []
    for place in range(len(scales)):
        gamma, beta = (code @ tensors[f"projectors.{place}"]).chunk(2)
        found.append((1 + scales[place] * gamma.tanh(), shifts[place] * beta.tanh()))
    return found


def fold_factors(
    tensors: Mapping[str, Tensor], factors: Factors
) -> tuple[dict[str, Tensor], Tensor]:
    """An energy head's tensors with modulated inputs folded in, and a constant energy in eV.

        (x g + s) W + b = x (diag(g) W) + (s W + b)

    Args:
        tensors: `weights.0`, `biases.0`, ..., `out` of an `EnergyHead`.
        factors: g and s of what each matrix takes in.
    """
    folded = dict(tensors)
    for place, (scale, shift) in enumerate(factors[:-1]):
        matrix, bias = f"weights.{place}", f"biases.{place}"
        folded[matrix] = scale[:, None] * tensors[matrix]
        folded[bias] = tensors[bias] + shift @ tensors[matrix]
    scale, shift = factors[-1]
    folded["out"] = scale[:, None] * tensors["out"]
    return folded, (shift @ tensors["out"])[0]


def fold_row(
    tensors: Mapping[str, Tensor], row: Float[Tensor, " width"]
) -> tuple[dict[str, Tensor], Tensor]:
    """The same for a head whose first matrix got the branch appended to its input.

    Args:
        row: what the branch adds to the first matrix' output.
    """
    if "weights.0" not in tensors:
        return dict(tensors), row[0]
    return {**tensors, "biases.0": tensors["biases.0"] + row}, row.new_zeros(())


class BranchHeads(nn.Module):
    """The heads of all branches, of which one is chosen.

    Args:
        head: what every branch starts as.
        n_branches: how many.
        kind: see the table at the top.
    """

    def __init__(self, head: EnergyHead, n_branches: int, kind: HeadKind) -> None:
        super().__init__()
        n_heads = n_branches if kind == "own" else 1
        self.kind, self.branch, self.n_branches = kind, 0, n_branches
        self.members = nn.ModuleList(copy.deepcopy(head) for _ in range(n_heads))
        widths = [weight.shape[0] for weight in (*head.weights, head.out)]
        first = head.weights[0] if len(head.weights) else head.out
        self.modulation = Modulation(n_branches, widths) if kind == "film" else None
        self.rows = None
        if kind == "concat":
            self.rows = nn.Parameter(torch.zeros(n_branches, first.shape[1]))

    def tensors(self, branch: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], Tensor | None]:
        """Tensors of the plain head that a branch is, and its constant energy in eV, if any."""
        member = self.members[branch if self.kind == "own" else 0]
        plain = {name: value.to(dtype) for name, value in member.named_parameters()}
        if self.modulation is not None:
            small = {name: value.to(dtype) for name, value in self.modulation.named_parameters()}
            case = torch.zeros_like(small["inner"][:, 0])
            case[branch] = 1
            return fold_factors(plain, modulation_factors(case, small))
        if self.rows is not None:
            return fold_row(plain, self.rows[branch].to(dtype))
        return plain, None

    def forward(self, descriptor: Float[Tensor, "atom channel"]) -> Float[Tensor, " atom"]:
        """Learned part of the atomic energies in eV, as the chosen branch sees it."""
        tensors, constant = self.tensors(self.branch, descriptor.dtype)
        energy = functional_call(self.members[0], tensors, (descriptor,))
        return energy if constant is None else energy + constant


class BranchedDPA4(DPA4):
    """A network with several branches, for training; `choose` says which one it is.

    Args:
        plain: what every branch starts as; its weights are copied.
        branches: their names.
        kind: what they have of their own, see the table at the top.

    Raises:
        ConfigError: no branch or two of one name, or another kind.
    """

    shifts: Tensor

    def __init__(self, plain: DPA4, branches: Sequence[str], kind: HeadKind = "film") -> None:
        if not branches or len(set(branches)) != len(branches):
            raise ConfigError(f"branches = {list(branches)}; give at least one, each name once.")
        if kind not in get_args(HeadKind):
            choices = ", ".join(map(repr, get_args(HeadKind)))
            raise ConfigError(f"sharing.head = {kind!r}. Choose one of {choices}.")
        if plain.config.force_head != "none":
            raise ConfigError(
                "Branches are of energies and their gradients. Leave out force_head, or train each "
                "set of direct forces by itself."
            )
        if plain.config.has_spins:
            raise ConfigError("Branches have no spins yet. Leave out spin, or train one set alone.")
        if not isinstance(plain.head, EnergyHead):
            raise ConfigError(
                f"The network predicts the property '{plain.config.property_head.name}', and "
                "branches are of energies. Train each property by itself."
            )
        weight = plain.species_table
        with torch.random.fork_rng(devices=[]):
            super().__init__(plain.config, weight.dtype)
        self.to(weight.device).load_state_dict(plain.state_dict())
        for name, parameter in plain.named_parameters():
            self.get_parameter(name).requires_grad_(parameter.requires_grad)
        self.branches, head = tuple(branches), self.head
        assert isinstance(head, EnergyHead)
        self.head = BranchHeads(head, len(branches), kind).to(weight)  # type: ignore[assignment]
        self.register_buffer("energy_shift", plain.energy_shift.clone(), persistent=False)
        self.register_buffer("shifts", plain.energy_shift.repeat(len(branches), 1))

    @property
    def heads(self) -> BranchHeads:
        """The head, which knows all branches."""
        assert isinstance(self.head, BranchHeads)
        return self.head

    def choose(self, branch: str) -> None:
        """Answer as this branch from now on."""
        place = self.branches.index(branch)
        self.heads.branch = place
        self.energy_shift = self.shifts[place].clone()

    def parameters_of(self, branches: Sequence[str]) -> list[nn.Parameter]:
        """Weights in training that play a part in any of these branches."""
        absent: set[str] = set()
        if self.heads.kind == "own":
            others = [k for k, name in enumerate(self.branches) if name not in branches]
            absent = {f"head.members.{k}." for k in others}
        return [
            parameter
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and not name.startswith(tuple(absent))
        ]

    @torch.no_grad()
    def network(self, branch: str) -> DPA4:
        """A plain network with the energies of one branch, folded in float64."""
        place, weight = self.branches.index(branch), self.species_table
        tensors, constant = self.heads.tensors(place, torch.float64)
        state = {
            name: value
            for name, value in self.state_dict().items()
            if name != "shifts" and not name.startswith("head.")
        }
        state |= {f"head.{name}": value.to(weight) for name, value in tensors.items()}
        shift = self.shifts[place]
        state["energy_shift"] = shift if constant is None else shift + constant
        with torch.random.fork_rng(devices=[]):
            plain = DPA4(self.config, dtype=weight.dtype).to(weight.device)
        plain.load_state_dict(state)
        return plain.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BranchedDPA4:
        """Move or cast everything but the energy shifts, which stay float64."""
        shifts = self._buffers.get("shifts")
        super()._apply(fn, recurse)
        if shifts is not None:
            self.shifts = shifts.to(self.shifts.device)
        return self
