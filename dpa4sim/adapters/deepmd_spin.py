"""DeePMD-kit's `spin` section <-> SpinConfig and the tensors that it brings.

Its virtual-atom scheme ("deepspin") numbers the virtual atoms of all species behind the species, in
every table by species; those of species without a moment are placeholders.  It also cuts each
atom's neighbours at `sel`, nearest first, which dpa4sim never does: the two agree where `sel` is
enough, and DeePMD-kit's energy jumps where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dpa4sim.config import DPA4Config
from dpa4sim.errors import ModelError

SCHEMES = {"deepspin": "virtual", "native": "native"}
UNREAD = ("allow_missing_label", "spin_norm", "virtual_len")
"""Options of the section that change no energy of a DPA4 model."""

NATIVE_NAMES = {
    "moment_features.inner": "spin_embedding.mag_layer1.matrix",
    "moment_features.outer": "spin_embedding.mag_layer2.matrix",
    "moment_features.own": "spin_embedding.adam_spin_vec_weight",
    "moment_features.of_neighbor": "spin_embedding.adam_spin_nbr_weight",
}
MOMENT_SCALE = ("environment.moment_scale", "env_seed_embedding.spin_scale")


def spin_from_deepmd(model: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Our words for a model's `spin` section; empty where there is none.

    Raises:
        ModelError: an unknown option or scheme, or values that do not fit the elements.
    """
    given = model.get("spin")
    if not given:
        return {}
    strangers = [
        key for key in given if key not in ("use_spin", "virtual_scale", "scheme", *UNREAD)
    ]
    if strangers:
        raise ModelError(
            f"{source} uses the option spin.{strangers[0]} = {given[strangers[0]]!r}, which "
            "dpa4sim does not know."
        )
    scheme = str(given.get("scheme", "deepspin")).lower()
    if scheme not in SCHEMES:
        raise ModelError(
            f"{source} uses spin.scheme = '{given['scheme']}'. dpa4sim reads 'deepspin' and "
            "'native'."
        )
    magnetic = _magnetic(given.get("use_spin", []), list(model["type_map"]), source)
    if scheme == "native":
        return {"scheme": "native", "magnetic": magnetic} if magnetic else {}
    if not magnetic:
        raise ModelError(f"{source} has virtual atoms, and spin.use_spin marks no element.")
    scales = _scales(given.get("virtual_scale"), magnetic, list(model["type_map"]), source)
    return {"scheme": "virtual", "magnetic": magnetic, "virtual_scale": scales}


def spin_to_deepmd(config: DPA4Config) -> dict[str, Any]:
    """The `spin` section; empty for a model without spins."""
    if not config.has_spins:
        return {}
    values: dict[str, Any] = {"use_spin": [name in config.spin.magnetic for name in config.species]}
    if not config.has_virtual_atoms:
        return {"spin": {**values, "scheme": "native"}}
    given = config.spin.virtual_scale
    scales = given * (len(config.spin.magnetic) if len(given) == 1 else 1)
    by_name = dict(zip(config.spin.magnetic, scales, strict=True))
    values["virtual_scale"] = [by_name[name] for name in config.species if name in by_name]
    return {"spin": {**values, "scheme": "deepspin"}}


def spin_names(config: DPA4Config) -> Iterator[tuple[str, str]]:
    """Tensors of native spins under `descriptor.`; virtual atoms have none of their own."""
    if config.has_spins and not config.has_virtual_atoms:
        yield from NATIVE_NAMES.items()
        if config.environment_seed:
            yield MOMENT_SCALE


def settle_native_spins(
    tensors: dict[str, Tensor], model: Mapping[str, Any], version: float
) -> float:
    """Bring native spins to what descriptor version 1.2 means, in place; the version they now have.

    In 1.1 the scale of the moments in the environment matrix acted before the square.  A model that
    was made for spins and marks no element computes without them: its tensors are dropped.
    """
    given = model.get("spin")
    if not given or str(given.get("scheme", "deepspin")).lower() != "native":
        return version
    stem = "atomic_model.descriptor."
    names = [*NATIVE_NAMES.values(), MOMENT_SCALE[1]]
    if not any(flag is not False for flag in given.get("use_spin", [])):
        for name in names:
            tensors.pop(stem + name, None)
        return version
    if not 1.1 - 1e-6 <= version < 1.2 - 1e-6:
        return version
    scale = stem + MOMENT_SCALE[1]
    if scale in tensors:
        tensors[scale] = tensors[scale].square()
    return 1.2


def with_placeholders(config: DPA4Config, rows: Tensor) -> Tensor:
    """A table by species with zero rows for the virtual atoms."""
    missing = config.n_kinds - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])


def _magnetic(given: Any, names: list[str], source: str) -> list[str]:
    """The marked elements, which DeePMD-kit takes as flags, as indices or as symbols."""
    try:
        if given and isinstance(given[0], bool):
            return [name for name, flag in zip(names, given, strict=True) if flag]
        if given and isinstance(given[0], str):
            return [names[names.index(name)] for name in given]
        return [names[index] for index in given]
    except (IndexError, TypeError, ValueError) as error:
        raise ModelError(
            f"{source} has spin.use_spin = {given!r}, which does not fit its elements "
            f"{', '.join(names)}."
        ) from error


def _scales(given: Any, magnetic: list[str], names: list[str], source: str) -> list[float]:
    """Å per Bohr magneton of each magnetic element, in the order of `magnetic`."""
    if isinstance(given, int | float):
        return [float(given)]
    ordered = [name for name in names if name in magnetic]
    if isinstance(given, list | tuple) and len(given) in (len(names), len(ordered)):
        by_name = dict(zip(names if len(given) == len(names) else ordered, given, strict=True))
        return [float(by_name[name]) for name in magnetic]
    raise ModelError(
        f"{source} has spin.virtual_scale = {given!r}. It must be one number, or one for each of "
        f"the {len(names)} elements or of the {len(ordered)} magnetic ones."
    )
