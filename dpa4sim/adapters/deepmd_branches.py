"""DeePMD-kit's multi-task checkpoints: a branch's case embedding folded into its fitting net."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dpa4sim.errors import ModelError
from dpa4sim.model.branches import fold_factors, fold_row, modulation_factors

FITTING = "atomic_model.fitting_net."
NETWORK = f"{FITTING}filter_layers.networks.0."
CASE_OPTIONS = ("dim_case_embd", "case_film_embd")

MODULATION = {
    "inner": "case_layer1.matrix",
    "outer": "case_layer2.matrix",
    "scale_strength_log": "adam_case_film_scale_strength_log",
    "shift_strength_log": "adam_case_film_shift_strength_log",
}
"""Our names of the tensors of `Modulation` and those under `case_film.`."""


def fold_case(
    model: Mapping[str, Any], tensors: dict[str, Tensor], source: str
) -> Mapping[str, Any]:
    """The model's options without its case embedding, whose tensors are folded away in place.

    The case of a branch is a constant, so the branch is a plain energy model.

    Raises:
        ModelError: a tensor of the case embedding is missing.
    """
    fitting = dict(model.get("fitting_net", {}))
    if str(fitting.get("type", "")).lower() == "property" or not set(CASE_OPTIONS) & set(fitting):
        return model
    n_cases, film = fitting.pop("dim_case_embd", 0), fitting.pop("case_film_embd", False)
    if not n_cases:
        return {**model, "fitting_net": fitting}
    case = _pop(tensors, f"{FITTING}case_embd", source).double()
    head = _head(tensors, source)
    if film:
        small = _modulation(tensors, len(head) // 2 + 1, source)
        folded, constant = fold_factors(head, modulation_factors(case, small))
    else:
        first = "weights.0" if "weights.0" in head else "out"
        channels = len(head[first]) - n_cases
        head[first], rows = head[first].split([channels, n_cases])
        folded, constant = fold_row(head, case @ rows)
        fitting["neuron"] = [head[f"weights.{k}"].shape[1] // 2 for k in range(len(head) // 2)]
    for name, value in folded.items():
        theirs = NETWORK + _name(name)
        tensors[theirs] = value.to(tensors[theirs])
    bias = _pop(tensors, f"{FITTING}bias_atom_e", source)
    tensors[f"{FITTING}bias_atom_e"] = bias.double() + constant
    return {**model, "fitting_net": fitting}


def _head(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The fitting net under our names, in float64."""
    found, layer = {}, 0
    while f"{NETWORK}{_name(f'weights.{layer}')}" in tensors:
        for kind in ("weights", "biases"):
            name = f"{kind}.{layer}"
            found[name] = _get(tensors, NETWORK + _name(name), source).double()
        layer += 1
    found["out"] = _get(tensors, NETWORK + _name("out"), source).double()
    return found


def _modulation(tensors: dict[str, Tensor], n_targets: int, source: str) -> dict[str, Tensor]:
    """The modulating network under our names, in float64; it leaves `tensors`."""
    names = MODULATION | {f"projectors.{k}": f"projectors.{k}" for k in range(n_targets)}
    return {
        ours: _pop(tensors, f"{NETWORK}case_film.{theirs}", source).double()
        for ours, theirs in names.items()
    }


def _name(ours: str) -> str:
    """DeePMD-kit's name of a tensor of an energy head."""
    if ours == "out":
        return "output_layer.matrix"
    kind, layer = ours.split(".")
    return f"hidden_layers.{layer}.linear.{'matrix' if kind == 'weights' else 'bias'}"


def _get(tensors: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    if name not in tensors:
        raise ModelError(f"{source} lacks the tensor '{name}', which its options call for.")
    return tensors[name]


def _pop(tensors: dict[str, Tensor], name: str, source: str) -> Tensor:
    value = _get(tensors, name, source)
    del tensors[name]
    return value
