"""DeePMD-kit checkpoints -> Potential and back.

Weights keep their shapes, so importing is renaming; `tensor_names` is the whole dictionary.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpa4sim.adapters.deepmd_branches import fold_case
from dpa4sim.adapters.deepmd_constants import constants
from dpa4sim.adapters.deepmd_dens import (
    dens_from_deepmd,
    dens_names,
    dens_to_deepmd,
    has_dens,
)
from dpa4sim.adapters.deepmd_options import config_from_deepmd, config_to_deepmd
from dpa4sim.adapters.deepmd_property import (
    PROPERTY_NETWORK,
    alias_of,
    property_names,
    property_statistics,
    statistics_to_deepmd,
)
from dpa4sim.adapters.deepmd_spin import settle_native_spins, spin_names, with_placeholders
from dpa4sim.config import DPA4Config
from dpa4sim.errors import ModelError

State = dict[str, Tensor]

CONSTANT = re.compile(
    r"(expand_index|balance_weight|wigner_calc\.l1_\w+|gie\.\w+|m0_idx|pos_indices|neg_indices"
    r"|kernel_\w+_index|degree_index_m|mean|stddev|version_tensor|out_std|dens_force_rmsd"
    r"|min_nbor_dist|atomic_numbers|fparam_avg|fparam_inv_std|aparam_avg|aparam_inv_std)$"
)
"""Tensors of a checkpoint that follow from its options or play no part in an energy."""


def read_deepmd(path: str | Path, branch: str | None = None) -> tuple[DPA4Config, State]:
    """Config and state of a DeePMD-kit training checkpoint (.pt).

    Args:
        path: the checkpoint; only tensors and plain values are read, nothing in it is executed.
        branch: branch of a multi-task checkpoint.

    Raises:
        ModelError: not such a checkpoint, a missing or unknown branch, or an unsupported option.
    """
    source = str(path)
    state, params = _read(Path(path))
    branch, model = _choose_branch(params, branch, source)
    prefix = f"model.{branch}."
    tensors = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    tensors = {k: v for k, v in tensors.items() if isinstance(v, Tensor)}
    if not tensors:
        raise ModelError(f"{source} has no weights under '{prefix}'.")
    fold_lora(tensors)
    model = fold_case(model, tensors, source)
    version = tensors.get("atomic_model.descriptor.version_tensor")
    known = settle_native_spins(tensors, model, 1.0 if version is None else float(version))
    config = config_from_deepmd(model, known, source)
    if has_dens(tensors):
        config, statistics = dens_from_deepmd(config, tensors, source)
        return config, _rename(config, tensors, source) | statistics
    return config, _rename(config, tensors, source)


def branches_of(path: Path) -> tuple[str, ...]:
    """Names of the branches of a multi-task checkpoint; none for a single task.

    Raises:
        ModelError: not such a checkpoint.
    """
    branches = _read(path)[1].get("model_dict")
    return tuple(branches) if isinstance(branches, Mapping) else ()


def write_deepmd(config: DPA4Config, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a checkpoint that DeePMD-kit 3.2 loads, tests, freezes and fine-tunes.

    Raises:
        ModelError: the state lacks a tensor of the network, or DeePMD-kit would misread it.
    """
    params, tensors = _to_deepmd(config, state)
    model: dict[str, Any] = {f"model.Default.{name}": value for name, value in tensors.items()}
    model["_extra_state"] = {"model_params": params, "train_infos": {"lr": 0.0, "step": 0}}
    torch.save({"model": model}, path)


def write_deepmd_branches(
    branches: Mapping[str, tuple[DPA4Config, Mapping[str, Tensor]]], path: str | Path
) -> None:
    """Write a multi-task checkpoint in which each branch has a fitting net of its own.

    Raises:
        ModelError: a state lacks a tensor of its network.
    """
    model: dict[str, Any] = {}
    params: dict[str, Any] = {}
    for branch, (config, state) in branches.items():
        params[branch], tensors = _to_deepmd(config, state)
        model |= {f"model.{branch}.{name}": value for name, value in tensors.items()}
    train_infos = {"lr": 0.0, "step": 0}
    model["_extra_state"] = {"model_params": {"model_dict": params}, "train_infos": train_infos}
    torch.save({"model": model}, path)


def _to_deepmd(
    config: DPA4Config, state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Options and tensors of one model."""
    precision = str(state["species_table"].dtype).removeprefix("torch.")
    tensors: State = {}
    for ours, theirs in tensor_names(config):
        if ours not in state:
            raise ModelError(f"The model has no tensor '{ours}'; it is not a whole DPA4 model.")
        tensors[f"atomic_model.{theirs}"] = state[ours].detach().cpu().clone().contiguous()
        if config.property_head.name and theirs.startswith(PROPERTY_NETWORK):
            tensors[f"atomic_model.{alias_of(theirs)}"] = tensors[f"atomic_model.{theirs}"]
    tensors["min_nbor_dist"] = torch.tensor(-1.0, dtype=torch.float64)
    bias, spread, inner = _output_statistics(config, state)
    tensors["atomic_model.out_bias"], tensors["atomic_model.out_std"] = bias[None], spread[None]
    tensors["atomic_model.dens_force_rmsd"] = torch.tensor(1.0, dtype=torch.float64)
    tensors["atomic_model.fitting_net.bias_atom_e"] = inner
    dtype = state["species_table"].dtype
    if config.force_head != "none":
        tensors |= {f"atomic_model.{name}": value for name, value in dens_to_deepmd(config, state)}
    for name, value in constants(config, dtype):
        tensors[f"atomic_model.descriptor.{name}"] = value
    if config.zbl_inner is not None:
        numbers = torch.tensor(config.atomic_numbers, dtype=torch.float64)
        tensors["inter_potential.atomic_numbers"] = numbers
    return config_to_deepmd(config, precision), tensors


def tensor_names(config: DPA4Config) -> Iterator[tuple[str, str]]:
    """(our name, DeePMD-kit's name under `atomic_model.`) of every weight."""
    for ours, theirs in _embedding_names(config):
        yield ours, f"descriptor.{theirs}"
    for ours, theirs in spin_names(config):
        yield ours, f"descriptor.{theirs}"
    for index, (degree, order) in enumerate(zip(config.degrees, config.orders, strict=True)):
        for ours, theirs in _block_names(config, degree, order):
            yield f"blocks.{index}.{ours}", f"descriptor.blocks.{index}.{theirs}"
    for unit in range(config.readout_layers):
        last = unit == config.readout_layers - 1
        theirs = "output_ffn" if last else f"readout_pre_layers.{unit}"
        for a, b in _readout_names(config):
            yield f"readout.units.{unit}.{a}", f"descriptor.{theirs}.{b}"
    if config.property_head.name:
        yield from property_names(config)
        return
    if config.force_head != "none":
        yield from dens_names(config)
        return
    network = "fitting_net.filter_layers.networks.0."
    for layer in range(len(config.energy_hidden)):
        yield f"head.weights.{layer}", f"{network}hidden_layers.{layer}.linear.matrix"
        yield f"head.biases.{layer}", f"{network}hidden_layers.{layer}.linear.bias"
    yield "head.out", f"{network}output_layer.matrix"


def fold_lora(tensors: State) -> None:
    """Add the low-rank updates to their base weights, in place: W += scaling (B A)^T."""
    for name in [name for name in tensors if ".A_" in name]:
        stem, kind = name.split(".A_")  # "by_l", "m0" or "m.0"
        down, up = tensors.pop(name), tensors.pop(f"{stem}.B_{kind}")
        scale = float(tensors.get(f"{stem}.lora_scaling", torch.tensor(1.0)))
        base = f"{stem}.weight" if kind == "by_l" else f"{stem}.weight_{kind}"
        tensors[base] = tensors[base] + scale * (up @ down).transpose(-1, -2)
    for name in [name for name in tensors if name.endswith(".lora_scaling")]:
        del tensors[name]


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """State and model options of a checkpoint file, whatever goes wrong told in one sentence."""
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles, which end as errors here
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds pickled objects beside tensors, which could run code; "
            "it was not opened. A training checkpoint holds tensors and plain values only."
        ) from error
    except Exception as error:  # foreign bytes make the unpickler raise almost anything
        raise ModelError(
            f"{path} is not a readable PyTorch checkpoint (truncated, or another kind of file)."
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    extra = state.get("_extra_state") if isinstance(state, Mapping) else None
    params = extra.get("model_params") if isinstance(extra, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(params, Mapping):
        raise ModelError(
            f"{path} is a PyTorch file, but not a DeePMD-kit checkpoint: it has no model options."
        )
    return state, params


def _choose_branch(
    params: Mapping[str, Any], branch: str | None, source: str
) -> tuple[str, Mapping[str, Any]]:
    branches = params.get("model_dict")
    if not isinstance(branches, Mapping):
        if branch not in (None, "Default"):
            raise ModelError(f"{source} has one branch only; leave out branch='{branch}'.")
        return "Default", params
    names = ", ".join(branches)
    if branch is None:
        raise ModelError(
            f"{source} has the branches {names}. Choose one: branch='{next(iter(branches))}'."
        )
    if branch not in branches:
        raise ModelError(f"{source} has no branch '{branch}'. It has {names}.")
    return branch, branches[branch]


def _rename(config: DPA4Config, tensors: State, source: str) -> State:
    """Our state; every tensor of the checkpoint is used or known to be a constant."""
    state, left = {}, dict(tensors)
    for ours, theirs in tensor_names(config):
        value = left.pop(f"atomic_model.{theirs}", None)
        if value is None:
            raise ModelError(f"{source} lacks the tensor '{theirs}', which its options call for.")
        state[ours] = value
        alias = left.pop(f"atomic_model.{alias_of(theirs)}", value)
        if not torch.equal(alias, value):
            raise ModelError(f"{source} has two different tensors for the weight '{theirs}'.")
    shifts, what = ["fitting_net.bias_atom_e", "out_bias"], "energy"
    if config.property_head.name:
        shifts, what = [*shifts, "out_std"], "share of the property"
    for name in shifts:
        if f"atomic_model.{name}" not in left:
            raise ModelError(f"{source} lacks the tensor '{name}', the {what} of each element.")
    bias, shift, *spread = (left.pop(f"atomic_model.{name}").double() for name in shifts)
    if spread:
        state |= property_statistics(config, bias, shift[0], spread[0][0])
    else:
        state["energy_shift"] = (bias[:, 0] + shift[0, :, 0])[: len(config.species)]
    strangers = [name for name in left if not CONSTANT.search(name)]
    if strangers:
        raise ModelError(
            f"{source} holds the tensor '{strangers[0]}', which dpa4sim does not know."
        )
    return state


def _output_statistics(
    config: DPA4Config, state: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Bias and spread of the output and the bias inside of it, (species, 1) or (species, task)."""
    names = ("head.bias", "head.spread") if config.property_head.name else ("energy_shift",)
    for name in names:
        if name not in state:
            raise ModelError(f"The model has no tensor '{name}'; it is not a whole DPA4 model.")
    found = [state[name].detach().cpu().double().clone() for name in names]
    if config.property_head.name:
        return statistics_to_deepmd(config, *found)
    shift = with_placeholders(config, found[0])[:, None]
    return shift, torch.ones_like(shift), torch.zeros_like(shift)


def _embedding_names(config: DPA4Config) -> Iterator[tuple[str, str]]:
    yield "species_table", "type_embedding.adam_type_embedding"
    if config.charge_spin:
        source = "charge_spin_embedding."
        yield "charge_spin.charge_table", source + "charge_embedding.adam_type_embedding"
        yield "charge_spin.spin_table", source + "spin_embedding.adam_type_embedding"
        yield "charge_spin.mix", source + "mix_layer.matrix"
        yield "charge_spin.mix_bias", source + "mix_layer.bias"
    yield "basis.parameter", "radial_basis.adam_freqs"
    stride = 3 if config.edge_norm else 2
    for layer in range(len(config.radial_hidden)):
        yield f"radial.weights.{layer}", f"radial_embedding.net.{stride * layer}.matrix"
        if config.edge_norm:
            yield f"radial.scales.{layer}", f"radial_embedding.net.{stride * layer + 1}.adam_scale"
    yield "radial.out", f"radial_embedding.net.{stride * len(config.radial_hidden)}.matrix"
    if not config.environment_seed:
        return
    source = "env_seed_embedding."
    yield "environment.species_table", source + "env_type_embed.adam_type_embedding"
    for ours, theirs in (("radial", "rbf_proj"), ("pair", "g")):
        for side, place in (("inner", "layer1"), ("outer", "layer2")):
            yield f"environment.{ours}.{side}", f"{source}{theirs}_{place}.matrix"
            if config.bias:
                yield f"environment.{ours}.{side}_bias", f"{source}{theirs}_{place}.bias"
    yield "environment.out", source + "output_proj.matrix"
    for name in ("scale", "shift"):
        if config.edge_norm:
            yield f"environment.{name}_norm", f"film_{name}_norm.adam_scale"
        yield f"environment.{name}_strength_log", f"film_{name}_strength_log"


def _block_names(config: DPA4Config, degree: int, order: int) -> Iterator[tuple[str, str]]:
    for ours, theirs in _convolution_names(config, degree, order):
        yield f"convolution.{ours}", f"so2_conv.{theirs}"
    norms = [("before_convolution", "norm_before", "pre_so2_norm")]
    norms.append(("after_convolution", "norm_after", "post_so2_norm"))
    for unit in range(config.ffn_blocks):
        norms.append(("before_ffn", f"ffn_norm_before.{unit}", f"pre_ffn_norms.{unit}"))
        norms.append(("after_ffn", f"ffn_norm_after.{unit}", f"post_ffn_norms.{unit}"))
        grid, gated = config.ffn_grid != "none", config.ffn_grid == "none"
        operation = config.ffn_grid_operation if grid else "product"
        gates = degree + config.extra_degree if gated else None
        for a, b in _feed_forward_names(operation, gates, config.bias):
            yield f"feed_forward.{unit}.{a}", f"ffns.{unit}.{b}"
        if config.layer_scale:
            yield f"ffn_scales.{unit}", f"adam_ffn_layer_scales.{unit}"
    for place, ours, theirs in norms:
        if place in config.norm_places:
            yield f"{ours}.scale", f"{theirs}.adam_scale"
            yield f"{ours}.bias", f"{theirs}.bias"


def _convolution_names(config: DPA4Config, degree: int, order: int) -> Iterator[tuple[str, str]]:
    for ours, theirs in (("mix_in", "pre_focus_mix"), ("mix_out", "post_focus_mix")):
        yield f"{ours}.weight", f"{theirs}.weight"
        if config.bias:
            yield f"{ours}.bias", f"{theirs}.bias"
    if config.n_focus * config.focus_width != config.channels:
        yield "profile_mix", "radial_hidden_proj.weight"
    if config.edge_product != "none":
        yield "product.weight", "radial_degree_mixer.weight"
        if config.edge_product == "degree_channel" and config.product_rank:
            yield "product.channel_basis", "radial_degree_mixer.channel_basis"
    yield from _stack_names(config, degree, order)
    if config.n_focus > 1:
        yield "focus_weight", "adamw_focus_compete_w"
        if config.edge_norm:
            yield "focus_norm", "focus_compete_norm.adam_scale"
        if config.bias:
            yield "focus_bias", "focus_compete_bias"
    if config.n_heads:
        yield "query", "attn_q_proj.weight"
        yield "key", "attn_k_proj.weight"
        yield "query_key_norm", "attn_qk_norm.adam_scale"
        yield "radial_logit", "adamw_attn_logit_w"
        yield "null_logit", "adamw_attn_z_bias_raw"
        yield "gate_norm", "attn_output_gate_norm.adam_scale"
        yield "gate_weight", "adamw_attn_gate_w"
    if config.message_grid:
        grid = "message_node_grid_product."
        yield "message_grid.expand.weight", grid + "frame_expand.weight"
        yield "message_grid.contract.weight", grid + "frame_contract.weight"
        yield "message_grid.scale", grid + "residual_scale"
        for a, b in _product_names(config.message_grid_operation, config.bias):
            yield f"message_grid.product.{a}", grid + b


def _stack_names(config: DPA4Config, degree: int, order: int) -> Iterator[tuple[str, str]]:
    for layer in range(config.so2_layers):
        linear = f"so2_linears.{layer}."
        yield f"stack.zonal.{layer}", linear + "weight_m0"
        for m in range(order):
            yield f"stack.pairs.{layer}.{m}", f"{linear}weight_m.{m}"
        if config.bias:
            yield f"stack.biases.{layer}", linear + "bias0"
        if config.layer_scale:
            yield f"stack.scales.{layer}", f"adam_so2_layer_scales.{layer}"
        if layer == config.so2_layers - 1:
            continue
        if degree:
            yield f"stack.gates.{layer}", f"non_linearities.{layer}.gate_linear.weight"
        if degree and config.bias:
            yield f"stack.gate_biases.{layer}", f"non_linearities.{layer}.gate_linear.bias"
        if config.so2_norm:
            yield f"stack.norm_scales.{layer}", f"so2_inter_norms.{layer}.adam_scale"
            yield f"stack.norm_biases.{layer}", f"so2_inter_norms.{layer}.bias0"


def _readout_names(config: DPA4Config) -> Iterator[tuple[str, str]]:
    if config.readout != "scalar":
        yield from _feed_forward_names(config.readout, None, config.bias)
    else:
        yield from _feed_forward_names("product", 0, config.bias)


def _feed_forward_names(operation: str, gates: int | None, bias: bool) -> Iterator[tuple[str, str]]:
    """Names of one unit; `gates` is its degree where it gates instead of using a grid."""
    for ours, theirs in (("widen", "so3_linear_1"), ("narrow", "so3_linear_2")):
        yield f"{ours}.weight", f"{theirs}.weight"
        if bias:
            yield f"{ours}.bias", f"{theirs}.bias"
    if gates is not None:
        if gates:
            yield "gate", "act.gate_linear.weight"
        if gates and bias:
            yield "gate_bias", "act.gate_linear.bias"
        return
    for a, b in _product_names(operation, bias):
        yield f"product.{a}", f"act.{b}"


def _product_names(operation: str, bias: bool) -> Iterator[tuple[str, str]]:
    yield "gate", "scalar_gate.weight"
    if bias:
        yield "gate_bias", "scalar_gate.bias"
    if operation == "product":
        return
    for name in ("left", "right", "out"):
        yield name, f"grid_op.{name}_proj.weight"
    if operation == "branch":
        yield "router", "grid_op.router.weight"
