"""Everything before step 0: data that is fit for the run, and the network it begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler

from dpa4sim.config import NAMED_SIZES, DPA4Config, PropertyConfig, SpinConfig
from dpa4sim.data.statistics import energy_shifts
from dpa4sim.data.store import Store, is_store
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.mapping import from_mapping
from dpa4sim.model import DPA4
from dpa4sim.model_file import read_network
from dpa4sim.train.dens import check_direct, fill_direct_statistics, with_force_head
from dpa4sim.train.property import fill_statistics, with_property_head
from dpa4sim.train.schedule import WarmupConstant, WarmupCosine, WarmupStableDecay
from dpa4sim.train.settings import Data, Schedule, Settings
from dpa4sim.train.spin import check_spins

LABELS = {"energy": "energy", "force": "forces", "virial": "stress"}
"""Label that each term of the loss needs."""


@dataclass(frozen=True)
class Split:
    """Frames of one purpose.

    Args:
        store: where they are.
        frames: their rows.
    """

    store: Store
    frames: np.ndarray


def open_split(settings: Settings) -> tuple[Split, Split]:
    """Training and validation frames, checked against what the loss needs.

    Raises:
        DataError: a file that is no store, an empty split, or a label that the loss needs and no
            frame has.
    """
    data, of_property, spins = settings.data, property_of(settings), spins_of(settings)
    train = open_store(data.train, "data.train")
    rows = usable(train, data)
    if data.valid:
        valid = open_store(data.valid, "data.valid")
        parts = Split(train, rows), Split(valid, usable(valid, data))
    else:
        order = np.random.default_rng(settings.run.seed).permutation(rows)
        n_valid = round(data.valid_fraction * len(rows))
        parts = (
            Split(train, np.sort(order[n_valid:])),
            Split(train, np.sort(order[:n_valid])),
        )
    for name, part in zip(("training", "validation"), parts, strict=True):
        if not len(part.frames):
            raise DataError(
                f"The {name} set is empty. Give data.valid, or a larger data.valid_fraction than "
                f"{data.valid_fraction:g}."
                if name == "validation"
                else f"{data.train} has no frame that can be used."
            )
        check_labels(settings, part, name, of_property)
        if spins.magnetic:
            check_spins(settings, spins, part, name)
    return parts


def spins_of(settings: Settings) -> SpinConfig:
    """How moments enter the model that the run trains; without a magnetic species where not.

    Raises:
        ConfigError: settings that cannot be used.
        ModelError: the model to start from can't be used.
    """
    if not settings.finetune.model:
        table = settings.model.get("spin", {})
        return from_mapping(SpinConfig, table, "The model config", "spin.")
    network, _ = read_network(settings.finetune.model, settings.finetune.branch or None)
    return network.config.spin


def open_store(path: str, key: str) -> Store:
    """A store, or what to type to get one.

    Raises:
        DataError: no such file, or no store.
    """
    if not Path(path).is_file() or not is_store(path):
        what = "is not a store" if Path(path).exists() else "does not exist"
        raise DataError(
            f"{key} = '{path}' {what}. Make one: dpa4sim data convert FILES -o NAME.h5."
        )
    return Store(path)


def usable(store: Store, data: Data) -> np.ndarray:
    """Rows without pairs closer than `data.min_distance`."""
    rows = np.arange(len(store))
    return rows[store.min_distance >= data.min_distance] if data.min_distance else rows


def asked_head(settings: Settings) -> PropertyConfig:
    """The [model.property_head] table; without a name where there is none.

    Raises:
        ConfigError: an unknown key or a value that cannot be used.
    """
    table = settings.model.get("property_head", {})
    return from_mapping(PropertyConfig, table, "The model config", "property_head.")


def property_of(settings: Settings) -> str:
    """Name of the property that the run trains on; empty for energies.

    Raises:
        ConfigError: settings that cannot be used.
        ModelError: the model to start from can't be used.
    """
    name = asked_head(settings).name
    if name or not settings.finetune.model:
        return name
    network, _ = read_network(settings.finetune.model, settings.finetune.branch or None)
    return network.config.property_head.name


def check_labels(settings: Settings, part: Split, name: str, of_property: str = "") -> None:
    """Each term of the loss must have labels.

    Raises:
        DataError: a weight is not zero and no frame has the label.
    """
    if of_property:
        if not part.store.has_property(of_property)[part.frames].any():
            known = ", ".join(part.store.properties) or "none"
            raise DataError(
                f"{part.store.path}: no {name} frame has the property '{of_property}'; the store's "
                f"properties: {known}. Convert with it: dpa4sim data convert --property "
                f"{of_property}."
            )
        return
    for term, label in LABELS.items():
        weight = max(getattr(settings.loss, term))
        if weight > 0 and not part.store.has(label)[part.frames].any():
            raise DataError(
                f"{part.store.path}: no {name} frame has a label '{label}', and loss.{term} = "
                f"{weight:g}. Set loss.{term}=0, or convert with the key of the labels: "
                f"dpa4sim data convert --{label}-key KEY."
            )


def build(settings: Settings, train: Split, valid: Split) -> DPA4:
    """The network at step 0, with the energies of its species.

    Raises:
        ConfigError: options that can't be used, or a species that the network does not know.
        ModelError: the model to start from can't be used.
    """
    present = species_of(train, valid)
    if settings.finetune.model:
        model = from_model(settings, train, present)
        check_direct(settings, model)
        return model
    model = first_network(settings, present)
    config = model.config
    if config.property_head.name:
        fill_statistics(model, train.store, train.frames)
        return model
    shifts = energy_shifts(
        train.store, train.frames, config.species, given=settings.data.energy_shifts
    )
    model.energy_shift.copy_(torch.as_tensor(shifts))
    check_direct(settings, model)
    if config.force_head != "none":
        fill_direct_statistics(model, train.store, train.frames)
    return model


def first_network(settings: Settings, present: Sequence[str]) -> DPA4:
    """The network of the [model] table with its first weights, and no energies.

    Args:
        present: species of the data.

    Raises:
        ConfigError: options that can't be used, or a species that the network does not know.
    """
    config = model_config(settings.model, present)
    strangers = [name for name in present if name not in config.species]
    if strangers:
        raise ConfigError(
            f"model.species lacks {', '.join(strangers)}, which the data has. Add them, or leave "
            "model.species out."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.run.seed)
        return DPA4(config, dtype=getattr(torch, settings.run.dtype))


def species_of(*parts: Split) -> tuple[str, ...]:
    """Chemical symbols of all frames, in the order of the periodic table."""
    from ase.data import atomic_numbers

    found = {name for part in parts for name in part.store.species}
    return tuple(sorted(found, key=lambda name: atomic_numbers[name]))


def model_config(values: dict[str, Any], present: Sequence[str]) -> DPA4Config:
    """Config of the [model] table: a named size, and what differs from it.

    Raises:
        ConfigError: an unknown key or a value that cannot be used.
    """
    values = {"species": tuple(present), **values}
    size = values.pop("size", None)
    if size is not None:
        if size not in NAMED_SIZES:
            raise ConfigError(f"model.size = {size!r}. Choose one of {', '.join(NAMED_SIZES)}.")
        values = {"layer_scale": True, **NAMED_SIZES[size], **values}
    return DPA4Config.from_dict(values)


def schedule_of(
    optimizer: torch.optim.Optimizer, asked: Schedule, lr: float, steps: int
) -> LRScheduler:
    """The learning rate over the steps."""
    rise, start = asked.warmup_steps, asked.start_factor
    if asked.name == "constant":
        return WarmupConstant(optimizer, rise, start_factor=start)
    stop = min(asked.final_lr / lr, 1.0)
    if asked.name == "cosine":
        return WarmupCosine(optimizer, steps, rise, start_factor=start, stop_factor=stop)
    return WarmupStableDecay(
        optimizer,
        steps,
        rise,
        decay_fraction=asked.decay_fraction,
        start_factor=start,
        stop_factor=stop,
    )


def from_model(settings: Settings, train: Split, present: Sequence[str]) -> DPA4:
    """A model that has been trained before, with what the settings change in it."""
    from dpa4sim.train.finetune import extend_species, freeze, refit_shifts
    from dpa4sim.train.lora import add_lora

    chosen = settings.finetune
    model, _ = read_network(chosen.model, chosen.branch or None, settings.run.dtype)
    model.train()
    head = asked_head(settings)
    if head.name:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.run.seed)
            model = with_property_head(model, head)
    new = [name for name in present if name not in model.config.species]
    if new:
        model = extend_species(model, new)
    if head.name:
        fill_statistics(model, train.store, train.frames)
    direct = settings.model.get("force_head", "none")
    kept = model.config.property_head.name or model.config.force_head != "none"
    if chosen.refit_shifts and not kept:
        model = refit_shifts(model, train.store, train.frames)
    if direct != "none":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.run.seed)
            model = with_force_head(model, direct, train.store, train.frames)
    freeze(model, chosen.freeze)
    if chosen.lora_rank:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.run.seed)
            add_lora(model, rank=chosen.lora_rank, alpha=chosen.lora_alpha)
    return model
