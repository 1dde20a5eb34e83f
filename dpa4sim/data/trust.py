"""Labels against a trusted model: signs and units, not accuracy."""

from __future__ import annotations

import numpy as np

from dpa4sim.batch import Batch
from dpa4sim.complaint import complaint
from dpa4sim.data.consistency import guess
from dpa4sim.data.frame import Frame
from dpa4sim.moments import magnetic_elements, moments_complaint, with_moments
from dpa4sim.potential import EnergyModel

FRAMES_PER_SOURCE = 40
MOST_ATOMS = 200
"""Of a frame that is compared."""

OPPOSITE = -0.3
"""Correlation below which labels have the opposite sign."""

ALIKE = 0.5
"""Correlation above which the ratio of labels to predictions means something."""

NEAR = 1.6
"""Ratio up to which a model may be wrong."""


class Trust:
    """Compares the first frames of each source with a model.

    Args:
        model: whose predictions have the right sign and unit.
    """

    def __init__(self, model: EnergyModel) -> None:
        self.model = model
        self._pairs: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
        self._used: dict[str, int] = {}

    def add(self, frame: Frame) -> None:
        """Evaluate a frame, if it is among the first of its source and the model knows it."""
        known = getattr(self.model, "known_elements", None)
        few = self._used.get(frame.source, 0) < FRAMES_PER_SOURCE
        small = frame.system.positions.shape[0] <= MOST_ATOMS
        magnetic = magnetic_elements(self.model)
        sick = complaint(frame.system, known) or moments_complaint(frame.system, magnetic)
        if not few or not small or sick is not None:
            return
        system = with_moments(frame.system, magnetic)
        self._used[frame.source] = self._used.get(frame.source, 0) + 1
        prediction = self.model(Batch.concatenate([system]).to(self.model.device))
        own = {
            "forces": prediction.forces.cpu().numpy(),
            "stress": prediction.stress[0].cpu().numpy(),
        }
        if prediction.magnetic_forces is not None:
            own["magnetic_forces"] = prediction.magnetic_forces.cpu().numpy()
        for name, predicted in own.items():
            label = getattr(frame, name)
            if label is not None and np.isfinite(predicted).all():
                self._pairs.setdefault((frame.source, name), []).append((label, predicted))

    def findings(self) -> list[tuple[str, str, str]]:
        """(source, label, sentence) of labels with another sign or unit than the predictions."""
        found = []
        for (source, name), pairs in self._pairs.items():
            label, predicted = (np.concatenate([p[k].ravel() for p in pairs]) for k in (0, 1))
            what = name.replace("_", " ")
            scale = np.sqrt((label**2).sum() * (predicted**2).sum())
            if scale == 0:
                continue
            correlation = float(label @ predicted / scale)
            ratio = float(np.sqrt((label**2).sum() / (predicted**2).sum()))
            if correlation < OPPOSITE:
                text = f"the {what} have the opposite sign of the model's (correlation "
                found.append((source, name, f"{text}{correlation:.2f})"))
            elif correlation > ALIKE and max(ratio, 1 / ratio) > NEAR:
                text = f"the {what} are {ratio:.4g} times the model's{guess(ratio, name)}"
                found.append((source, name, text))
        return found
