"""What both optimisers are given.  Needs numpy only, so that either environment can read it."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

RATE = 1.0
"""So large that a step changes weights by 0.1 to 1: tolerances mean what they say."""
DECAY = 0.1
STEPS = 4
MODEL_STEPS = 2

CASES: dict[str, tuple[int, ...]] = {
    "square": (24, 24),
    "other_square": (24, 24),
    "large_square": (96, 96),
    "tall": (40, 12),
    "wide": (12, 40),
    "wider": (12, 100),
    "thin": (2, 30),
    "slices": (3, 16, 24),
    "square_slices": (4, 16, 16),
    "two_leading_axes": (2, 3, 8, 5),
    "unit_axis": (5, 1, 7),
    "tiny_gradient": (10, 10),
    "tiny_wide_gradient": (6, 10),
    "no_gradient": (8, 8),
    "vector": (17,),
    "column": (9, 1),
    "adam_table": (11, 6),
    "adamw_gate": (6, 2, 2),
    "adamw_vector": (6, 1),
}
"""Name, which is DeePMD-kit's too and so says adam or adamw, and shape."""

MODEL_SETS = (
    *("paper_plus", "mlp_bias", "message_branch", "message_mlp", "radial_rank_2", "so2_norm"),
    *("charge_spin", "schedule_so3", "no_grid_no_glu", "ffn_blocks", "message_bias"),
)
"""Networks that together have every kind of tensor."""

_WSD = "LearningRateWSD"
SCHEDULES: dict[str, tuple[str, dict[str, Any]]] = {
    "paper": (
        _WSD,
        {
            "stop_lr": 1e-6,
            "num_steps": 143,
            "warmup_steps": 7,
            "warmup_start_factor": 0.2,
            "decay_phase_ratio": 0.65,
            "decay_type": "cosine",
        },
    ),
    "linear": (
        _WSD,
        {
            "stop_lr": 1e-5,
            "num_steps": 50,
            "decay_phase_ratio": 0.33,
            "decay_type": "linear",
        },
    ),
    "inverse_linear": (
        _WSD,
        {
            "stop_lr": 1e-5,
            "num_steps": 61,
            "warmup_steps": 20,
            "warmup_start_factor": 0.0,
            "decay_phase_ratio": 0.9,
            "decay_type": "inverse_linear",
        },
    ),
    "cosine": (
        "LearningRateCosine",
        {"stop_lr": 1e-6, "num_steps": 60, "warmup_steps": 9, "warmup_start_factor": 0.2},
    ),
}


def gradient(name: str, shape: tuple[int, ...], step: int) -> np.ndarray:
    """Random numbers that depend on the name and the step; partly the same from step to step."""
    rng, shared = (
        np.random.default_rng(zlib.crc32(f"{name}{word}".encode())) for word in (step, "")
    )
    drawn = rng.standard_normal(shape) + 0.5 * shared.standard_normal(shape)
    if name.startswith("tiny") and step >= 0:
        drawn = drawn * 1e-9
    if name == "no_gradient" and step >= 0:
        drawn = drawn * 0
    return drawn
