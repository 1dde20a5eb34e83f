"""Going on from a trained network: new elements, fitted energies, frozen parts."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from dpa4sim.data.statistics import compositions
from dpa4sim.data.store import Store
from dpa4sim.errors import ConfigError, DataError
from dpa4sim.model import DPA4
from dpa4sim.moments import magnetic_elements, with_moments
from dpa4sim.potential import Potential

EMBEDDING = ("species_table", "charge_spin", "basis", "radial", "environment")
"""What makes the first features, and the radial functions that all blocks share."""
ALL_BUT = "all but "
ATOMS_PER_BATCH = 2000
FRAMES = 1000
RCOND = 1e-6
"""Directions of composition space that the frames hardly explore stay as they are."""


def extend_species(
    source: DPA4 | Potential,
    new_species: Sequence[str],
    from_like: Mapping[str, str] | None = None,
) -> DPA4:
    """A trainable copy that knows more elements; predictions for the old ones keep every bit.

    A new element starts as a copy of a known one, its energy included: the nearest in its group
    of the periodic table, or else the nearest in atomic number.  The old ones stay in front.

    Args:
        source: a network, or a Potential such as `dpa4sim.load` gives.
        new_species: chemical symbols.
        from_like: {"Cs": "Rb"} names the known element to start from.

    Raises:
        ConfigError: a symbol that is known already or none, or a wrong `from_like`.
    """
    model = source.model if isinstance(source, Potential) else source
    old, like = model.config.species, dict(from_like or {})
    for name in new_species:
        if name in old:
            raise ConfigError(f"The model knows {name} already. Leave it out of the new species.")
    for name, known in like.items():
        if name not in new_species or known not in old:
            raise ConfigError(
                f"from_like = {{'{name}': '{known}'}} must lead from one of the new species "
                f"({', '.join(new_species)}) to one that the model knows ({', '.join(old)})."
            )
    config = replace(model.config, species=(*old, *new_species))
    rows = torch.tensor(
        [*range(len(old)), *(old.index(like.get(n) or _kin(n, old)) for n in new_species)]
    )
    weight = model.species_table
    extended = DPA4(config, dtype=weight.dtype).to(weight.device)
    state = dict(model.state_dict())
    kinds = torch.cat([rows, rows + len(old)]) if config.has_virtual_atoms else rows
    for name in ("species_table", "environment.species_table"):
        if name in state:  # the last row is the reference's padding
            state[name] = torch.cat([state[name][kinds], state[name][-1:]])
    of_moments = ("moment_features.own", "moment_features.of_neighbor")
    of_heads = ("head.bias", "head.spread", "head.energy_spread")
    for name in ("energy_shift", *of_heads, *of_moments):
        if name in state and state[name].ndim and len(state[name]) == len(old):
            state[name] = state[name][rows]
    extended.load_state_dict(state)
    return extended


def refit_shifts(
    model: DPA4, store: Store, frames: np.ndarray | None = None, *, max_frames: int = FRAMES
) -> DPA4:
    """Fit the energies of the elements to what the model leaves of the labels, in place.

        minimise  sum_f ((E_f - E_model,f - sum_s n_fs change_s) / N_f)^2

    of least norm: elements that the frames do not have, or do not tell apart, move the least.

    Args:
        frames: rows of the store to use; None all.
        max_frames: at most so many, evenly spaced among them.

    Raises:
        DataError: no frame with an energy.
    """
    rows = np.arange(len(store)) if frames is None else np.sort(frames)
    rows = rows[store.has("energy")[rows]]
    if not len(rows):
        raise DataError(
            f"{store.path} has no frame with an energy to fit shifts to. Convert it with "
            "--energy-key, or set finetune.refit_shifts=false."
        )
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(max_frames, len(rows))).astype(int))]
    potential = Potential(
        copy.deepcopy(model),
        device=model.species_table.device,
        dtype=str(model.species_table.dtype).removeprefix("torch."),
    )
    counts, residuals = [], []
    for block, number_of, energy in compositions(store, model.config.species, rows):
        counts.append(number_of)
        residuals.append(energy - _energies(potential, store, block))
    change = shift_changes(np.concatenate(counts), np.concatenate(residuals))
    with torch.no_grad():
        model.energy_shift += torch.as_tensor(change).to(model.energy_shift.device)
    return model


def _energies(potential: Potential, store: Store, rows: np.ndarray) -> np.ndarray:
    """What the model says of some frames, in eV."""
    batch_of = np.cumsum(store.n_atoms[rows]) // ATOMS_PER_BATCH
    found = []
    for number in np.unique(batch_of):
        batch = store.batch(rows[batch_of == number]).to(potential.device).batch
        batch = with_moments(batch, magnetic_elements(potential))
        found.append(potential(batch).energy.cpu().numpy())
    return np.concatenate(found)


def shift_changes(
    counts: Float[np.ndarray, "frame species"], residuals: Float[np.ndarray, " frame"]
) -> Float[np.ndarray, " species"]:
    """Energies per element (eV) that explain the residuals (eV) best, per atom; least norm."""
    size = counts.sum(1)
    found, *_ = np.linalg.lstsq(counts / size[:, None], residuals / size, rcond=RCOND)
    return np.asarray(found)


def freeze(model: DPA4, groups: Sequence[str]) -> list[str]:
    """Keep groups of weights from training, in place; their names.

    Args:
        groups: "embedding"; a part of a weight's name from the left, such as "blocks", "blocks.0"
            or "head"; or "all but head", which keeps what follows.

    Raises:
        ConfigError: an unknown group, or nothing left to train.
    """
    frozen = members(model, groups)
    named = dict(model.named_parameters())
    if frozen and not any(p.requires_grad for name, p in named.items() if name not in frozen):
        raise ConfigError(f"freeze = {list(groups)} leaves nothing to train. Name fewer groups.")
    for name in frozen:
        named[name].requires_grad_(False)
    return sorted(frozen)


def members(model: DPA4, groups: Sequence[str]) -> set[str]:
    """Names of the weights in any of the groups of `freeze`.

    Raises:
        ConfigError: an unknown group, with the nearest valid one.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for group in groups:
        stem = group.removeprefix(ALL_BUT).strip()
        heads = EMBEDDING if stem == "embedding" else (stem,)
        inside = {name for name in names if any(f"{name}.".startswith(f"{h}.") for h in heads)}
        if not inside:
            raise ConfigError(_unknown(stem, names))
        found |= set(names) - inside if group.startswith(ALL_BUT) else inside
    return found


def _unknown(group: str, names: Sequence[str]) -> str:
    """The message about a group that no weight belongs to."""
    known = {"embedding"}
    for name in names:
        words = name.split(".")
        known |= {".".join(words[:n]) for n in range(1, len(words) + 1)}
    near = difflib.get_close_matches(group, sorted(known, key=len), 1)
    tops = sorted({"embedding"} | {name.split(".")[0] for name in names})
    hint = f"Did you mean '{near[0]}'?" if near else f"Groups: {', '.join(tops)}."
    return f"No weight of the model is in the group '{group}'. {hint}"


def _kin(symbol: str, known: Sequence[str]) -> str:
    """The known element that is nearest in the periodic table."""
    from pymatgen.core import Element

    new = Element(symbol)
    return min(
        known,
        key=lambda name: (Element(name).group != new.group, abs(Element(name).Z - new.Z)),
    )
