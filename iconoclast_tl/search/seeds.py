"""Seeds for the parts of a search, so that each part is the same whatever was drawn before it."""

from __future__ import annotations

import numpy as np


def derived_seed(seed: int, *numbers: int) -> int:
    """A seed of its own for every tuple of numbers."""
    return int(np.random.SeedSequence([seed, *numbers]).generate_state(1)[0])
