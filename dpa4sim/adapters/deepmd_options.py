"""DeePMD-kit's model options <-> DPA4Config.  Its vocabulary stops here.

An option that dpa4sim does not compute is refused by name; nothing that matters is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpa4sim.adapters.deepmd_property import (
    PROPERTY_RENAMED,
    property_head_from_deepmd,
    property_head_to_deepmd,
)
from dpa4sim.adapters.deepmd_spin import spin_from_deepmd, spin_to_deepmd
from dpa4sim.config import DPA4Config
from dpa4sim.errors import ConfigError, ModelError

PLACES = ("before_convolution", "after_convolution", "before_ffn", "after_ffn")
DESCRIPTOR_TYPES = ("dpa4", "sezm")
FITTING_TYPES = ("dpa4_ener", "sezm_ener", "property")

RENAMED = {
    "rcut": "cutoff",
    "channels": "channels",
    "lmax": "max_degree",
    "extra_node_l": "extra_degree",
    "n_blocks": "n_blocks",
    "mixing_layers": "so2_layers",
    "so2_norm": "so2_norm",
    "layer_scale": "layer_scale",
    "n_focus": "n_focus",
    "focus_dim": "focus_channels",
    "n_atten_head": "n_heads",
    "basis_type": "radial_basis",
    "n_radial": "n_radial",
    "radial_mlp": "radial_hidden",
    "env_exp": "envelope_exponents",
    "edge_norm": "edge_norm",
    "radial_so2_mode": "edge_product",
    "radial_so2_rank": "product_rank",
    "use_env_seed": "environment_seed",
    "ffn_blocks": "ffn_blocks",
    "ffn_neurons": "ffn_channels",
    "message_node_so3": "message_grid",
    "kmax": "grid_order",
    "glu_activation": "gated_linear",
    "readout_layers": "readout_layers",
    "mlp_bias": "bias",
    "add_chg_spin_ebd": "charge_spin",
    "eps": "epsilon",
}
"""Options that only change their name."""

DEFAULTS: dict[str, Any] = {
    "rcut": 6.0,
    "channels": 64,
    "lmax": 3,
    "extra_node_l": 0,
    "n_blocks": 3,
    "mixing_layers": 4,
    "so2_norm": False,
    "layer_scale": False,
    "n_focus": 1,
    "focus_dim": 0,
    "n_atten_head": 1,
    "basis_type": "bessel",
    "n_radial": 16,
    "radial_mlp": [0],
    "env_exp": [7, 5],
    "edge_norm": True,
    "radial_so2_mode": "degree_channel",
    "radial_so2_rank": 1,
    "use_env_seed": True,
    "ffn_blocks": 1,
    "ffn_neurons": 0,
    "message_node_so3": False,
    "kmax": 1,
    "glu_activation": True,
    "readout_layers": 1,
    "mlp_bias": False,
    "add_chg_spin_ebd": False,
    "eps": 1e-7,
    "mmax": 1,
    "l_schedule": None,
    "m_schedule": None,
    "sandwich_norm": [False, True, True, False],
    "s2_activation": [False, True],
    "ffn_so3_grid": False,
    "grid_mlp": False,
    "grid_branch": 0,
    "so3_readout": "none",
    "exclude_types": [],
    "default_chg_spin": None,
}
"""DeePMD-kit 3.2's values for options that a checkpoint leaves out."""

INACTIVE: dict[str, tuple[Any, ...]] = {
    "activation_function": ("silu",),
    "edge_cartesian": (False,),
    "node_cartesian": ("none", 0, False),
    "so2_attn_res": ("none",),
    "full_attn_res": ("none",),
    "block_attn_res": ("none",),
    "node_wise_s2": (False,),
    "node_wise_so3": (False,),
    "message_node_s2": (False,),
    "atten_f_mix": (False,),
    "atten_v_proj": (False,),
    "atten_o_proj": (False,),
    "lebedev_quadrature": (True, [True, True], [False, True], None),
    "use_spin": (None,),
    "inner_clamp_r_inner": (None,),
    "inner_clamp_r_outer": (None,),
}
"""Options that change the function and are supported at these values only."""

HARMLESS = {
    "type",
    "sel",
    "random_gamma",
    "use_amp",
    "precision",
    "seed",
    "trainable",
    "type_map",
    "ntypes",
    "so2_layers",
    "env_protection",
}
"""Descriptor options that do not change an energy at inference."""

MODEL_HARMLESS = {
    "type",
    "type_map",
    "descriptor",
    "fitting_net",
    "bridging_method",
    "bridging_r_inner",
    "bridging_r_outer",
    "enable_tf32",
    "use_compile",
    "info",
    "lora",
    "model_branch_alias",
    "data_stat_nbatch",
    "data_stat_protect",
    "data_bias_nsample",
    "preset_out_bias",
    "model_dict",
    "shared_dict",
    "finetune_head",
    "resuming",
    "hessian_mode",
    "compress",
    "srtab_add_bias",
    "pair_exclude_types",
    "spin",
}

FITTING_INACTIVE: dict[str, tuple[Any, ...]] = {
    "activation_function": ("silu",),
    "numb_fparam": (0,),
    "numb_aparam": (0,),
    "dim_case_embd": (0,),
    "case_film_embd": (False,),
    "resnet_dt": (False,),
    "bias_out": (False,),
    "atom_ener": ([], None),
    "use_aparam_as_mask": (False,),
}
FITTING_HARMLESS = {
    "type",
    "neuron",
    "precision",
    "seed",
    "rcond",
    "trainable",
    "layer_name",
    "default_fparam",
    "ntypes",
    "dim_descrpt",
    "mixed_types",
    "type_map",
    "embedding_width",
}


PROPERTY_INACTIVE = {
    key: valid
    for key, valid in FITTING_INACTIVE.items()
    if key not in ("activation_function", "resnet_dt", "bias_out")
} | {"bias_atom_p": (None,), "exclude_types": ([], None)}


def config_from_deepmd(model: Mapping[str, Any], version: float, source: str) -> DPA4Config:
    """The network that a DeePMD-kit model section describes.

    Args:
        model: the section `model` of its input, as a checkpoint stores it.
        version: the descriptor's version tensor.
        source: file name for messages.

    Raises:
        ModelError: another kind of model, or an option that dpa4sim does not compute.
    """
    _refuse_model_options(model, source)
    given = dict(model.get("descriptor", {}))
    fitting = dict(model.get("fitting_net", {}))
    _refuse(given, {*RENAMED, *DEFAULTS, *HARMLESS}, INACTIVE, source, "descriptor.")
    of_property = _is_property(model)
    if of_property:
        known = FITTING_HARMLESS | set(PROPERTY_RENAMED)
        _refuse(fitting, known, PROPERTY_INACTIVE, source, "fitting_net.")
    else:
        _refuse(fitting, FITTING_HARMLESS, FITTING_INACTIVE, source, "fitting_net.")
    if given.get("so2_layers") is not None:  # the old name wins in DeePMD-kit
        given["mixing_layers"] = given["so2_layers"]
    options = {**DEFAULTS, **given}
    values = {ours: options[theirs] for theirs, ours in RENAMED.items()}
    values["radial_basis"] = str(values["radial_basis"]).lower()
    values["radial_hidden"] = values["radial_hidden"] or [0]
    values["envelope_exponents"] = values["envelope_exponents"] or [7, 5]
    values["species"] = list(model["type_map"])
    values |= _schedules(options) | _grids(options, source)
    values["norm_places"] = [
        place for place, on in zip(PLACES, options["sandwich_norm"], strict=True) if on
    ]
    pairs = _excluded_pairs(model.get("pair_exclude_types"), options["exclude_types"], source)
    names = model["type_map"]
    values["excluded_pairs"] = [[names[i], names[j]] for i, j in pairs]
    values["default_charge_spin"] = list(options["default_chg_spin"] or [])
    if of_property:
        values["property_head"] = property_head_from_deepmd(fitting, source)
    else:
        values["energy_hidden"] = list(fitting.get("neuron", [0]))
    values["descriptor_version"] = _version(version, source)
    values |= _bridging(model)
    values["spin"] = spin_from_deepmd(model, source)
    try:
        return DPA4Config.from_dict(values)
    except ConfigError as error:
        raise ModelError(f"{source}: {error}") from error


def config_to_deepmd(config: DPA4Config, precision: str) -> dict[str, Any]:
    """The model section with which DeePMD-kit builds the same network."""
    names = config.species
    descriptor: dict[str, Any] = {"type": "dpa4", "sel": 256, "precision": precision}
    values = config.to_dict()
    for theirs, ours in RENAMED.items():
        value = values[ours]
        descriptor[theirs] = list(value) if isinstance(value, tuple) else value
    descriptor |= {
        "mmax": config.max_order,
        "sandwich_norm": [place in config.norm_places for place in PLACES],
        "s2_activation": [False, config.ffn_grid == "s2"],
        "ffn_so3_grid": config.ffn_grid == "so3",
        "grid_mlp": [
            False,
            config.message_grid_operation == "mlp",
            config.ffn_grid_operation == "mlp",
        ],
        "grid_branch": [
            0,
            config.message_grid_branches if config.message_grid_operation == "branch" else 0,
            config.ffn_grid_branches if config.ffn_grid_operation == "branch" else 0,
        ],
        "so3_readout": {"scalar": "none", "product": "glu", "mlp": "mlp"}[config.readout],
        "exclude_types": [[names.index(a), names.index(b)] for a, b in config.excluded_pairs],
    }
    if config.degree_schedule:
        descriptor["l_schedule"] = list(config.degree_schedule)
    if config.order_schedule:
        descriptor["m_schedule"] = list(config.order_schedule)
    if config.default_charge_spin:
        descriptor["default_chg_spin"] = list(config.default_charge_spin)
    fitting = {"type": "dpa4_ener", "neuron": list(config.energy_hidden)}
    if config.property_head.name:
        fitting = property_head_to_deepmd(config)
    model: dict[str, Any] = {
        "type": "dpa4",
        "type_map": list(names),
        "descriptor": descriptor,
        "fitting_net": {**fitting, "precision": precision},
        **spin_to_deepmd(config),
    }
    if config.zbl_inner is not None:
        model["bridging_method"] = "zbl"
        model["bridging_r_inner"] = config.zbl_inner
        model["bridging_r_outer"] = config.zbl_outer
    return model


def _refuse_model_options(model: Mapping[str, Any], source: str) -> None:
    for section, key, valid, choices in (
        ("", "type", DESCRIPTOR_TYPES, "'dpa4'"),
        ("descriptor.", "type", DESCRIPTOR_TYPES, "'dpa4'"),
        ("fitting_net.", "type", FITTING_TYPES, "'dpa4_ener' or 'property'"),
    ):
        table = model.get(section[:-1], {}) if section else model
        kind = str(table.get(key, valid[0])).lower()
        if kind not in valid and not (section == "" and kind == "standard"):
            raise ModelError(
                f"{source} holds a DeePMD-kit model with {section}{key} = '{table[key]}'. "
                f"dpa4sim reads DPA4 energy models and property models, {section}{key} = {choices}."
            )
    if "type_map" not in model:
        raise ModelError(f"{source} has no 'type_map', so its elements are unknown.")
    for key, value in model.items():
        if key not in MODEL_HARMLESS and value not in (None, [], {}, False):
            raise ModelError(
                f"{source} uses the model option '{key}' = {value!r}, "
                "which dpa4sim does not compute."
            )


def _is_property(model: Mapping[str, Any]) -> bool:
    return str(model.get("fitting_net", {}).get("type", "")).lower() == "property"


def _refuse(
    given: Mapping[str, Any],
    known: set[str],
    inactive: Mapping[str, tuple[Any, ...]],
    source: str,
    section: str,
) -> None:
    for key, value in given.items():
        if key in inactive:
            if value not in inactive[key]:
                raise ModelError(
                    f"{source} uses {section}{key} = {value!r}, which dpa4sim does not compute. "
                    f"Supported: {inactive[key][0]!r}."
                )
        elif key not in known:
            raise ModelError(
                f"{source} uses the option {section}{key} = {value!r}, which dpa4sim does not know."
            )


def _excluded_pairs(of_model: Any, of_descriptor: Any, source: str) -> list[tuple[int, int]]:
    """Excluded type pairs, which DeePMD-kit takes in either of two places."""
    tables = [sorted(map(tuple, table)) for table in (of_model, of_descriptor) if table]
    if len(tables) == 2 and tables[0] != tables[1]:
        raise ModelError(
            f"{source} excludes different pairs in pair_exclude_types and descriptor.exclude_types."
        )
    return tables[0] if tables else []


def _schedules(options: Mapping[str, Any]) -> dict[str, Any]:
    degrees = options["l_schedule"]
    orders, top = options["m_schedule"], options["mmax"]
    values: dict[str, Any] = {"degree_schedule": list(degrees or [])}
    values["order_schedule"] = list(orders or [])
    largest = max(degrees) if degrees else options["lmax"]
    values["max_order"] = largest if top is None else top
    if orders:
        values["max_order"] = max(orders)
    if degrees:
        values |= {"max_degree": degrees[0], "n_blocks": len(degrees)}
    return values


def _grids(options: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Which grid each place uses; lists are [edge, message, feed-forward]."""
    on_edges, on_ffn = options["s2_activation"]
    if on_edges:
        raise ModelError(
            f"{source} uses descriptor.s2_activation[0] = True, which dpa4sim does not compute."
        )
    mlp = _three(options["grid_mlp"])
    branch = _three(options["grid_branch"])

    def operation(place: int) -> str:
        return "branch" if branch[place] else "mlp" if mlp[place] else "product"

    return {
        "ffn_grid": "so3" if options["ffn_so3_grid"] else "s2" if on_ffn else "none",
        "ffn_grid_operation": operation(2),
        "ffn_grid_branches": int(branch[2]),
        "message_grid_operation": operation(1),
        "message_grid_branches": int(branch[1]),
        "readout": {"none": "scalar", "glu": "product", "mlp": "mlp"}[
            str(options["so3_readout"]).lower()
        ],
    }


def _three(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] * 3


def _bridging(model: Mapping[str, Any]) -> dict[str, float]:
    if str(model.get("bridging_method", "none")).lower() in ("none", ""):
        return {}
    inner = model.get("bridging_r_inner", 0.5)
    return {"zbl_inner": float(inner), "zbl_outer": float(model.get("bridging_r_outer", 0.8))}


def _version(version: float, source: str) -> str:
    if version > 1.2 + 1e-6:
        raise ModelError(
            f"{source} has descriptor version {version}; dpa4sim knows 1.0, 1.1 and 1.2."
        )
    return "1.0" if version < 1.1 - 1e-6 else "1.1" if version < 1.2 - 1e-6 else "1.2"
