"""The figures of Matbench Discovery's leaderboard, and its combined score.

`matbench_discovery.py` makes the predictions.  Everything is in eV/atom.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

TRUE_HULL = "e_above_hull_mp2020_corrected_ppd_mp"
TRUE_FORMATION = "e_form_per_atom_mp2020_corrected"
UNIQUE = "unique_prototype"

STABLE = 0.0
"""eV/atom; up to here above the hull a crystal counts as stable."""

MOST_STABLE = 10_000
WORST_RMSD = 0.15
"""From here on it counts for nothing in the combined score."""

WORST_KAPPA = 2.0


def discovery_metrics(
    true: Float[np.ndarray, " crystal"], predicted: Float[np.ndarray, " crystal"]
) -> dict[str, float]:
    """How well predicted distances from the hull (eV/atom) find the stable crystals.

    A crystal without a prediction (NaN) counts as predicted unstable, and not for MAE, RMSE and R2.
    """
    stable, found = true <= STABLE, predicted <= STABLE  # NaN is not
    counts = {
        "TP": int((stable & found).sum()),
        "FP": int((~stable & found).sum()),
        "TN": int((~stable & ~found).sum()),
        "FN": int((stable & ~found).sum()),
    }
    precision = ratio(counts["TP"], counts["TP"] + counts["FP"])
    recall = ratio(counts["TP"], counts["TP"] + counts["FN"])
    false_positive = ratio(counts["FP"], counts["FP"] + counts["TN"])
    known = np.isfinite(true) & np.isfinite(predicted)
    error = predicted[known] - true[known]
    spread = float(np.square(true[known] - true[known].mean()).sum()) if known.any() else 0.0
    return {
        "F1": ratio(2 * precision * recall, precision + recall),
        "DAF": ratio(precision, float(stable.mean()) if len(stable) else 0.0),
        "Precision": precision,
        "Recall": recall,
        "Accuracy": ratio(counts["TP"] + counts["TN"], len(true)),
        "TPR": recall,
        "FPR": false_positive,
        "TNR": 1 - false_positive,
        "FNR": 1 - recall,
        **counts,
        "MAE": ratio(float(np.abs(error).sum()), len(error)),
        "RMSE": ratio(float(np.square(error).sum()), len(error)) ** 0.5,
        "R2": 1 - ratio(float(np.square(error).sum()), spread),
        "missing_preds": int((~np.isfinite(predicted)).sum()),
    }


def ratio(part: float, total: float) -> float:
    """NaN of nothing."""
    return float(part / total) if total else float("nan")


def subset_metrics(summary: pd.DataFrame, formation: pd.Series) -> dict[str, dict[str, float]]:
    """Metrics of the full set, of the unique prototypes, and of those predicted most stable.

    The predicted distance from the hull is the true one + predicted - true formation energy.

    Args:
        summary: of the benchmark, by material id.
        formation: predicted formation energies by material id, eV/atom.
    """
    true = summary[TRUE_HULL]
    predicted = true + formation.reindex(summary.index) - summary[TRUE_FORMATION]
    unique = summary.index[summary[UNIQUE].astype(bool)]
    lowest = predicted.loc[unique].nsmallest(MOST_STABLE).index
    prevalence = float((true.loc[unique] <= STABLE).mean())
    found = {}
    for name, chosen in (
        ("full_test_set", summary.index),
        ("unique_prototypes", unique),
        ("most_stable_10k", lowest),
    ):
        values = true.loc[chosen].to_numpy(float), predicted.loc[chosen].to_numpy(float)
        found[name] = discovery_metrics(*values)
    for name in ("unique_prototypes", "most_stable_10k"):
        found[name]["DAF"] = ratio(found[name]["Precision"], prevalence)
    return found


def rmsd(predicted: Structure, true: Structure) -> float:
    """Distance of matched atoms by (V / n)^(1/3), no unit; NaN where nothing matches."""
    found = StructureMatcher(stol=1.0, scale=False).get_rms_dist(predicted, true)
    return float("nan") if found is None else float(found[0])


def combined_score(f1: float, kappa_srme: float, mean_rmsd: float) -> float:
    """CPS = 0.5 F1 + 0.4 (1 - kappa_SRME / 2) + 0.1 (1 - RMSD / 0.15), each part in 0 to 1."""
    kappa_part = float(np.clip(1 - kappa_srme / WORST_KAPPA, 0, 1))
    rmsd_part = float(np.clip(1 - mean_rmsd / WORST_RMSD, 0, 1))
    return 0.5 * f1 + 0.4 * kappa_part + 0.1 * rmsd_part
