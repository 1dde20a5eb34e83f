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

from dpa4sim.adapters.deepmd_options import config_from_deepmd, config_to_deepmd
from dpa4sim.config import DPA4Config
from dpa4sim.errors import ModelError
from dpa4sim.model.frames import degree_of_lm, degree_of_row
from dpa4sim.model.norm import row_weights

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
    version = tensors.get("atomic_model.descriptor.version_tensor")
    config = config_from_deepmd(model, 1.0 if version is None else float(version), source)
    return config, _rename(config, tensors, source)


def write_deepmd(config: DPA4Config, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a checkpoint that DeePMD-kit 3.2 loads, tests, freezes and fine-tunes.

    Raises:
        ModelError: the state lacks a tensor of the network.
    """
    precision = str(state["species_table"].dtype).removeprefix("torch.")
    tensors: State = {}
    for ours, theirs in tensor_names(config):
        if ours not in state:
            raise ModelError(f"The model has no tensor '{ours}'; it is not a whole DPA4 model.")
        tensors[f"atomic_model.{theirs}"] = state[ours].detach().cpu().clone().contiguous()
    n = len(config.species)
    shift = state["energy_shift"].detach().cpu().double()
    tensors["min_nbor_dist"] = torch.tensor(-1.0, dtype=torch.float64)
    tensors["atomic_model.out_bias"] = shift.reshape(1, n, 1)
    tensors["atomic_model.out_std"] = torch.ones(1, n, 1, dtype=torch.float64)
    tensors["atomic_model.dens_force_rmsd"] = torch.tensor(1.0, dtype=torch.float64)
    tensors["atomic_model.fitting_net.bias_atom_e"] = torch.zeros(n, 1, dtype=torch.float64)
    dtype = state["species_table"].dtype
    for name, value in _constants(config, dtype):
        tensors[f"atomic_model.descriptor.{name}"] = value
    if config.zbl_inner is not None:
        numbers = torch.tensor(config.atomic_numbers, dtype=torch.float64)
        tensors["inter_potential.atomic_numbers"] = numbers
    params = config_to_deepmd(config, precision)
    model: dict[str, Any] = {f"model.Default.{name}": value for name, value in tensors.items()}
    model["_extra_state"] = {"model_params": params, "train_infos": {"lr": 0.0, "step": 0}}
    torch.save({"model": model}, path)


def tensor_names(config: DPA4Config) -> Iterator[tuple[str, str]]:
    """(our name, DeePMD-kit's name under `atomic_model.`) of every weight."""
    for ours, theirs in _embedding_names(config):
        yield ours, f"descriptor.{theirs}"
    for index, (degree, order) in enumerate(zip(config.degrees, config.orders, strict=True)):
        for ours, theirs in _block_names(config, degree, order):
            yield f"blocks.{index}.{ours}", f"descriptor.blocks.{index}.{theirs}"
    for unit in range(config.readout_layers):
        last = unit == config.readout_layers - 1
        theirs = "output_ffn" if last else f"readout_pre_layers.{unit}"
        for a, b in _readout_names(config):
            yield f"readout.units.{unit}.{a}", f"descriptor.{theirs}.{b}"
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
    shifts = ("fitting_net.bias_atom_e", "out_bias")
    for name in shifts:
        if f"atomic_model.{name}" not in left:
            raise ModelError(f"{source} lacks the tensor '{name}', the energy of each element.")
    bias, shift = (left.pop(f"atomic_model.{name}").double() for name in shifts)
    state["energy_shift"] = bias[:, 0] + shift[0, :, 0]
    strangers = [name for name in left if not CONSTANT.search(name)]
    if strangers:
        raise ModelError(
            f"{source} holds the tensor '{strangers[0]}', which dpa4sim does not know."
        )
    return state


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


def _constants(config: DPA4Config, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Index tables that DeePMD-kit stores in its checkpoints, under `descriptor.`."""
    yield "version_tensor", torch.tensor(float(config.descriptor_version), dtype=torch.float64)
    yield "mean", torch.zeros(0, dtype=dtype)
    yield "stddev", torch.ones(0, dtype=dtype)
    top = config.top_degree + config.extra_degree
    calculators = ["wigner_calc"]
    if config.environment_seed and top > 0:
        lm = torch.tensor(degree_of_lm(top)[1:])
        yield "gie.non_scalar_row_index", torch.arange(1, (top + 1) ** 2)
        yield "gie.zonal_m0_col_index_for_row", lm * lm + lm
        yield "gie.radial_slot_index_for_row", lm - 1
        if config.extra_degree:
            calculators.append("gie_zonal_wigner_calc")
    sign = torch.tensor([-1.0, -1.0, 1.0], dtype=dtype)
    for name in calculators:
        yield f"{name}.l1_perm", torch.tensor([1, 2, 0])
        yield f"{name}.l1_sign_outer", sign[:, None] * sign
    for index, (degree, order) in enumerate(zip(config.degrees, config.orders, strict=True)):
        for name, value in _block_constants(config, degree, order, dtype):
            yield f"blocks.{index}.{name}", value
    last = (config.degrees[-1] if config.degrees else config.top_degree) + config.extra_degree
    readout_degree = 0 if config.readout == "scalar" else last
    for unit in range(config.readout_layers):
        final = unit == config.readout_layers - 1
        name = "output_ffn" if final else f"readout_pre_layers.{unit}"
        yield from _ffn_constants(name, readout_degree, gated=config.readout == "scalar")


def _block_constants(
    config: DPA4Config, degree: int, order: int, dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    node = degree + config.extra_degree
    norms = [("before_convolution", "pre_so2_norm", degree)]
    norms.append(("after_convolution", "post_so2_norm", degree))
    for unit in range(config.ffn_blocks):
        norms.append(("before_ffn", f"pre_ffn_norms.{unit}", node))
        norms.append(("after_ffn", f"post_ffn_norms.{unit}", node))
        yield from _ffn_constants(f"ffns.{unit}", node, gated=config.ffn_grid == "none")
    for place, name, top in norms:
        if place in config.norm_places:
            lm = torch.tensor(degree_of_lm(top))
            yield f"{name}.expand_index", lm
            yield f"{name}.balance_weight", row_weights(lm, config.channels).to(dtype)
    lm = torch.tensor(degree_of_lm(degree))
    for name in ("pre_focus_mix", "post_focus_mix"):
        yield f"so2_conv.{name}.expand_index", lm
    rows = torch.tensor(degree_of_row(degree, order))
    n_zonal = degree + 1
    negative: list[int] = []
    positive: list[int] = []
    start = n_zonal
    for m in range(1, order + 1):
        size = degree - m + 1
        negative += range(start, start + size)
        positive += range(start + size, start + 2 * size)
        start += 2 * size
    for layer in range(config.so2_layers):
        yield f"so2_conv.so2_linears.{layer}.m0_idx", torch.arange(n_zonal)
        yield f"so2_conv.so2_linears.{layer}.pos_indices", torch.tensor(positive).long()
        yield f"so2_conv.so2_linears.{layer}.neg_indices", torch.tensor(negative).long()
        if layer == config.so2_layers - 1:
            continue
        yield f"so2_conv.non_linearities.{layer}.expand_index", rows[1:] - 1
        if config.so2_norm:
            name = f"so2_conv.so2_inter_norms.{layer}"
            yield f"{name}.degree_index_m", rows
            yield f"{name}.balance_weight", row_weights(rows, config.focus_width).to(dtype)
    if config.edge_product != "none":
        compact, dense = _kernel_index(degree, order)
        yield "so2_conv.radial_degree_mixer.kernel_compact_index", compact
        yield "so2_conv.radial_degree_mixer.kernel_dense_index", dense


def _ffn_constants(name: str, degree: int, *, gated: bool) -> Iterator[tuple[str, Tensor]]:
    lm = torch.tensor(degree_of_lm(degree))
    for linear in ("so3_linear_1", "so3_linear_2"):
        yield f"{name}.{linear}.expand_index", lm
    if gated:
        yield f"{name}.act.expand_index", lm[1:] - 1


def _kernel_index(degree: int, order: int) -> tuple[Tensor, Tensor]:
    """Where the compact kernel's entries [l, l'] stand in the dense (row', row) matrix."""
    n_rows = len(degree_of_row(degree, order))
    compact: list[int] = []
    dense: list[int] = []
    base = start = 0
    for m in range(order + 1):
        size = degree - m + 1
        for _ in range(1 if m == 0 else 2):
            for source in range(size):
                for target in range(size):
                    compact.append(base + source * size + target)
                    dense.append((start + target) * n_rows + start + source)
            start += size
        base += size * size
    return torch.tensor(compact), torch.tensor(dense)
