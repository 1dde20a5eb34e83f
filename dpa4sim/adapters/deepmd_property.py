"""DeePMD-kit's property fitting net <-> PropertyConfig and the tensors of our head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dpa4sim.config import DPA4Config
from dpa4sim.errors import ModelError

PROPERTY_RENAMED = {
    "property_name": "name",
    "task_dim": "task_dim",
    "intensive": "intensive",
    "distinguish_types": "by_species",
    "activation_function": "activation",
    "resnet_dt": "step_scales",
    "neuron": "hidden",
}
"""Options of a property's fitting net that only change their name."""

PROPERTY_DEFAULTS: dict[str, Any] = {
    "task_dim": 1,
    "intensive": False,
    "distinguish_types": True,
    "activation_function": "tanh",
    "resnet_dt": True,
    "neuron": [0],
}
"""DeePMD-kit 3.2's values for options that a checkpoint leaves out."""

PROPERTY_NETWORK = "fitting_net.filter_layers.networks.0.layers."

SAME_ACTIVATION = {"gelu_tf": "gelu", "none": "linear"}
"""Other words for one function."""


def property_head_from_deepmd(fitting: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Our words for a property's fitting net.

    Raises:
        ModelError: it does not name its property.
    """
    if "property_name" not in fitting:
        raise ModelError(f"{source} has no fitting_net.property_name, so its property is unknown.")
    options = {**PROPERTY_DEFAULTS, **fitting}
    values = {ours: options[theirs] for theirs, ours in PROPERTY_RENAMED.items()}
    activation = str(values["activation"] or "none").lower()
    values["activation"] = SAME_ACTIVATION.get(activation, activation)
    values["hidden"] = [0] if values["hidden"] is None else list(values["hidden"])
    return values


def property_head_to_deepmd(config: DPA4Config) -> dict[str, Any]:
    """The fitting net's options, but for the precision."""
    values = config.to_dict()["property_head"]
    found = {theirs: values[ours] for theirs, ours in PROPERTY_RENAMED.items()}
    return {"type": "property", **found, "neuron": list(found["neuron"])}


def property_statistics(
    config: DPA4Config, inner: Tensor, bias: Tensor, spread: Tensor
) -> dict[str, Tensor]:
    """Bias and spread of each species' share: std_s (network + inner_s) + bias_s."""
    if not config.property_head.by_species:  # then DeePMD-kit reads the first row for all
        bias, spread = bias[:1].expand_as(bias), spread[:1].expand_as(spread)
    return {"head.bias": bias + spread * inner, "head.spread": spread.clone()}


def statistics_to_deepmd(
    config: DPA4Config, bias: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The way back: bias, spread and inner bias, which alone differs by species if it must."""
    if config.property_head.by_species:
        return bias, spread, torch.zeros_like(bias)
    inner = (bias - bias[:1]) / spread[:1]
    return bias[:1].expand_as(bias).clone(), spread[:1].expand_as(bias).clone(), inner


def property_names(config: DPA4Config) -> Iterator[tuple[str, str]]:
    """Tensors of a property head: every layer's matrix and bias, the step scales of some."""
    asked, before = config.property_head, config.channels
    for layer, given in enumerate(asked.hidden):
        width = given or config.auto_hidden(gated=True)
        theirs = f"{PROPERTY_NETWORK}{layer}"
        yield f"head.weights.{layer}", f"{theirs}.matrix"
        yield f"head.biases.{layer}", f"{theirs}.bias"
        if asked.step_scales and width in (before, 2 * before):
            yield f"head.steps.{layer}", f"{theirs}.idt"
        before = width
    theirs = f"{PROPERTY_NETWORK}{len(asked.hidden)}"
    yield "head.out", f"{theirs}.matrix"
    yield "head.out_bias", f"{theirs}.bias"


def alias_of(name: str) -> str:
    """The second name under which a checkpoint holds each tensor of a property's network."""
    return name.replace("filter_layers.networks.", "filter_layers._networks.")
