"""How good a model is on frames that it was not trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from dpa4sim.data.batch import LabelledBatch
from dpa4sim.direct import DirectModel
from dpa4sim.moments import magnetic_elements, with_moments
from dpa4sim.potential import Potential
from dpa4sim.property import PropertyModel
from dpa4sim.train.build import Split
from dpa4sim.train.dens import DirectErrors, direct_residuals
from dpa4sim.train.loss import Errors, Weights, compared
from dpa4sim.train.property import PropertyErrors, property_residuals
from dpa4sim.train.ranks import Ranks
from dpa4sim.train.settings import Settings
from dpa4sim.train.spin import SpinErrors, compared_with_spins

BATCH_ATOMS = 500
"""Atoms that are evaluated together."""


def batches_of(part: Split, atoms: int | None = None) -> Iterator[LabelledBatch]:
    """The frames in their order, on the host.

    Args:
        atoms: stop before there are more than so many.
    """
    total = np.cumsum(part.store.n_atoms[part.frames])
    frames = part.frames if atoms is None else part.frames[total <= max(atoms, total[0])]
    cuts = np.flatnonzero(np.diff(total[: len(frames)] // BATCH_ATOMS)) + 1
    for group in np.split(frames, cuts):
        yield part.store.batch(group)


def validation_errors(
    model: Potential | PropertyModel | DirectModel, part: Split, ranks: Ranks
) -> dict[str, float]:
    """Mean errors over the frames of all processes."""
    of_property = isinstance(model, PropertyModel)
    errors = PropertyErrors(model.device) if of_property else Errors(model.device)
    if isinstance(model, DirectModel):
        errors = DirectErrors(model.device)
    elif magnetic_elements(model):
        errors = SpinErrors(model.device)
    for labelled in islice(batches_of(part), ranks.rank, None, ranks.world):
        labelled = labelled.to(model.device)
        if isinstance(model, PropertyModel):
            errors.add(property_residuals(model.model, labelled, model(labelled.batch)))
            continue
        if isinstance(model, DirectModel):
            errors.add(direct_residuals(labelled, model.predict(labelled.batch)))
            continue
        prediction = model(with_moments(labelled.batch, magnetic_elements(model)))
        if magnetic_elements(model):
            errors.add(compared_with_spins(model.config, labelled, prediction))
            continue
        virial = prediction.stress * labelled.batch.volume[:, None, None]
        errors.add(compared(labelled, prediction.energy, prediction.forces, virial))
    ranks.sum(errors.sums)
    ranks.sum(errors.labels)
    return errors.read()


def merit(errors: Mapping[str, float], settings: Settings) -> float:
    """Eq. 70 of mean errors with the last weights: which of two models is better.

    Of two property models, the one with the smaller error in units of the labels' spread.
    Infinite where the model says something that is not finite.
    """
    if "property_scaled_mae" in errors:
        score = errors["property_scaled_mae"]
        return score if math.isfinite(score) else math.inf
    weights = Weights.at(settings.loss, 0.0)
    terms = (
        (weights.energy, errors["energy_mae"]),
        (weights.force, errors["force_length"]),
        (weights.virial, errors.get("virial_mae", math.nan)),
        (settings.loss.magnetic_force[-1], errors.get("magnetic_force_length", 0.0)),
    )
    score = sum(weight * value for weight, value in terms if weight)
    return score if math.isfinite(score) else math.inf
