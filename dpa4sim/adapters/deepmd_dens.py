"""DeePMD-kit's "dens" fitting net <-> the head for direct forces.

Nothing in a checkpoint's options says that it is one; its tensors do.  Beside them the file keeps
the fitting net of the energy mode, trained or not; it plays no part here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import factorial, pi, sqrt

import torch
from torch import Tensor

from dpa4sim.config import DPA4Config
from dpa4sim.errors import ModelError
from dpa4sim.model.frames import degree_of_lm

NETWORK = "dens_fitting_net."
ENERGY_HEAD = f"{NETWORK}energy_head."
ENERGY_MODE = "atomic_model.fitting_net.filter_layers."
CONSTANTS = ("sqrt_inv_3", "sqrt_2", "sh_norm", "cartesian_scale", "expand_index")


def has_dens(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a checkpoint is of direct forces."""
    return any(name.startswith(f"atomic_model.{NETWORK}") for name in tensors)


def dens_from_deepmd(
    config: DPA4Config, tensors: dict[str, Tensor], source: str
) -> tuple[DPA4Config, dict[str, Tensor]]:
    """Config with the head, and its statistics; takes from `tensors` what only this mode has.

    Raises:
        ModelError: a statistic is missing.
    """
    shifts = ("out_bias", "out_std", "dens_force_rmsd", f"{ENERGY_HEAD}bias_atom_e")
    for name in shifts:
        if f"atomic_model.{name}" not in tensors:
            raise ModelError(f"{source} lacks the tensor '{name}', which direct forces call for.")
    spread = tensors["atomic_model.out_std"][0, :, 0].double()
    rmsd = tensors["atomic_model.dens_force_rmsd"].double()
    inner = tensors.pop(f"atomic_model.{ENERGY_HEAD}bias_atom_e").double()
    tensors["atomic_model.fitting_net.bias_atom_e"] = inner * spread[:, None]
    for name in list(tensors):
        constant = name.startswith(f"atomic_model.{NETWORK}") and name.endswith(CONSTANTS)
        if constant or name.startswith(ENERGY_MODE):
            del tensors[name]
    statistics = {"head.energy_spread": spread.clone(), "head.force_spread": rmsd.clone()}
    return replace(config, force_head="mirrored"), statistics


def dens_names(config: DPA4Config) -> Iterator[tuple[str, str]]:
    """Tensors of the head."""
    for layer in range(len(config.energy_hidden)):
        theirs = f"{ENERGY_HEAD}filter_layers.networks.0.hidden_layers.{layer}.linear."
        yield f"head.energy.weights.{layer}", f"{theirs}matrix"
        yield f"head.energy.biases.{layer}", f"{theirs}bias"
    yield "head.energy.out", f"{ENERGY_HEAD}filter_layers.networks.0.output_layer.matrix"
    yield "head.embedding.linear.weight", f"{NETWORK}force_embedding.proj.weight"
    yield "head.embedding.linear.bias", f"{NETWORK}force_embedding.proj.bias"
    yield "head.force.linear.weight", f"{NETWORK}direct_force_head.proj.weight"
    yield "head.noise.linear.weight", f"{NETWORK}denoising_head.proj.weight"


def dens_to_deepmd(config: DPA4Config, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint has besides `dens_names`: statistics, constants and the energy mode.

    The fitting net of the energy mode gets the energy head, its last layer times the spread: there
    DeePMD-kit finds the same energy, and forces that are its gradient.

    Raises:
        ModelError: a head with the right sign, which DeePMD-kit would read with the wrong one.
    """
    if config.force_head != "mirrored":
        raise ModelError(
            "DeePMD-kit 3.2 reads the y components of direct forces with the opposite sign, so it "
            "would misread this model. It can be used here only; a potential can be exported."
        )
    dtype = state["species_table"].dtype
    first = config.top_degree + config.extra_degree
    last = config.degrees[-1] + config.extra_degree
    spread = state["head.energy_spread"].detach().cpu().double()
    yield "out_std", spread[None, :, None].clone()
    yield "dens_force_rmsd", state["head.force_spread"].detach().cpu().double().clone()
    yield f"{ENERGY_HEAD}bias_atom_e", torch.zeros(len(spread), 1, dtype=torch.float64)
    for ours, theirs in dens_names(config):
        if theirs.startswith(ENERGY_HEAD):
            value = state[ours].detach().cpu().clone()
            value = value * spread[0].to(value) if ours == "head.energy.out" else value
            yield theirs.replace(ENERGY_HEAD, "fitting_net."), value
    norms = torch.zeros(first + 1, first + 1, dtype=torch.float64)
    for l in range(first + 1):
        for m in range(l + 1):
            norms[l, m] = sqrt((2 * l + 1) / (4 * pi) * factorial(l - m) / factorial(l + m))
    embedding = f"{NETWORK}force_embedding."
    yield f"{embedding}sh_norm", norms.to(dtype)
    yield f"{embedding}sqrt_2", torch.tensor(sqrt(2), dtype=dtype)
    yield f"{embedding}sqrt_inv_3", torch.tensor(1 / sqrt(3), dtype=dtype)
    yield f"{embedding}proj.expand_index", torch.tensor(degree_of_lm(first))
    for name in ("direct_force_head", "denoising_head"):
        yield f"{NETWORK}{name}.cartesian_scale", torch.tensor(sqrt(4 * pi / 3), dtype=dtype)
        yield f"{NETWORK}{name}.proj.expand_index", torch.tensor(degree_of_lm(last))
