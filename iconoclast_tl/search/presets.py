"""Presets: defaults for several stages at once, below everything that the user sets.

`iconoclast` is this project's. `heretic` is the space and the defaults of Heretic 1.4.0 (PyPI heretic-llm), so that the
two can be compared under one measurement. Its objectives are not: Heretic scales and clips its KL around a target, and
counts its own keywords; here both presets minimise plain rates and plain KL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "iconoclast": {
        "directions": {"estimator": "mean", "orthogonalize": True, "benign_rank": 8},
        "edit": {"row_normalization": "none"},
        "search": {"method": "gradient", "kl": "sequence"},
    },
    "heretic": {
        "directions": {"estimator": "mean", "orthogonalize": True, "benign_rank": 0},
        "edit": {"row_normalization": "full", "rank": 3},
        "search": {
            "method": "tpe",
            "kl": "first_token",
            "n_trials": 200,
            "n_startup_trials": 60,
            "n_ei_candidates": 128,
            "warm_start": False,
            "space": {
                "direction_scopes": ["global", "per layer"],
                # Heretic's direction_index, 0.4 to 0.9 of L−1: index i is the stream after layer i, residual point i+1.
                "points": [0.4, 0.9],
                "max_weight": [0.8, 1.5],
                "max_weight_position": [0.6, 1.0],
                "min_weight": [0.0, 1.0],
                "min_weight_distance": [0.0, 0.6],
            },
        },
    },
}
