"""Parameters of abliterations that were published, as they stand on the model cards.

All were found by Heretic's search (versions 1.0 to 2.0), for refusals, along Heretic's own directions; its ranges are
those of `search.space`, so a peak before 0.6 of the depth cannot be among them. Taken are the cards that could be read
in November 2026, of dense models with one kernel for attention and one for MLPs, where the base refused at least 80 of
100 prompts, as far as it is told, and the edit leaves at most 20. Not all were read at the source: arnomatic's in a
copy (darkc0de/3.2test), rayss868123's and richardyoung's in a summary of the card by others. They say what worked once:
others on the same model differ, and none was checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iconoclast_tl.edits.profiles import Kernel


@dataclass(frozen=True, kw_only=True)
class Published:
    """One model card. Positions and distances are in layers, weights as they are applied."""

    card: str
    """Hub id of the edited model, whose card tells what follows, but for the depth."""
    model: str
    """What was edited."""
    n_layers: int
    """Its depth: the model's, or that of what it was tuned from; granite's is counted from its number of parameters.
    All positions and distances lie in Heretic's ranges at it."""
    refusals: tuple[int | None, int]
    """Of 100 prompts, before (None where the card does not say) and after."""
    kl: float
    """First-token KL from the base, as Heretic measures it."""
    direction_index: float | None
    """Of the one direction, in Heretic's count: index i is the stream after layer i, residual point i+1. None where
    every layer had its own."""
    attn_out: Kernel
    mlp_out: Kernel

    @property
    def share(self) -> float | None:
        """How far the one direction's residual point lies on the way from point 1 to the last."""
        return None if self.direction_index is None else self.direction_index / (self.n_layers - 1)


PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "llama": (
        Published(
            card="hereticness/Heretic-Bellatrix-Tiny-1B",
            model="prithivMLmods/Bellatrix-Tiny-1B, of Llama 3.2 1B",
            n_layers=16,
            refusals=(97, 9),
            kl=0.5896,
            direction_index=13.34,
            attn_out=Kernel(1.42, 14.41, 0.83, 7.49),
            mlp_out=Kernel(1.37, 14.72, 1.06, 5.89),
        ),
    ),
    "qwen": (
        Published(
            card="hereticness/Heretic-FastApply-1.5B-v1.0",
            model="Kortix/FastApply-1.5B-v1.0, of Qwen2.5 Coder 1.5B",
            n_layers=28,
            refusals=(88, 5),
            kl=0.0566,
            direction_index=None,
            attn_out=Kernel(0.94, 18.00, 0.94, 13.83),
            mlp_out=Kernel(1.09, 24.44, 0.82, 9.71),
        ),
        Published(
            card="n0ctyx/Qwen3-4B-Instruct-uncensored",
            model="Qwen/Qwen3-4B-Instruct-2507",
            n_layers=36,
            refusals=(100, 19),
            kl=0.0785,
            direction_index=18.83,
            attn_out=Kernel(1.42, 23.83, 1.38, 17.62),
            mlp_out=Kernel(1.18, 27.92, 0.58, 17.38),
        ),
        Published(
            card="rayss868123/Qwen3-4B-Instruct-2507-heretic",
            model="Qwen/Qwen3-4B-Instruct-2507",
            n_layers=36,
            refusals=(100, 5),
            kl=0.0741,
            direction_index=18.29,
            attn_out=Kernel(3.22, 24.83, 0.51, 18.68),
            mlp_out=Kernel(1.47, 23.59, 0.60, 9.63),
        ),
    ),
    "gemma": (
        Published(
            card="K0D3IN/gemma-3-1B-it-heretic",
            model="google/gemma-3-1b-it",
            n_layers=26,
            refusals=(99, 9),
            kl=0.0449,
            direction_index=10.43,
            attn_out=Kernel(1.47, 17.33, 1.30, 13.06),
            mlp_out=Kernel(1.35, 17.56, 0.75, 10.54),
        ),
    ),
    "mistral": (
        Published(
            card="arnomatic/Mistral-Small-3.2-24B-Instruct-2506-Text-Only-heretic",
            model="mistralai/Mistral-Small-3.2-24B-Instruct-2506, text only",
            n_layers=40,
            refusals=(97, 4),
            kl=0.1261,
            direction_index=None,
            attn_out=Kernel(1.17, 24.81, 0.39, 22.42),
            mlp_out=Kernel(1.27, 30.79, 1.22, 23.19),
        ),
        Published(
            card="paoloronco/Mistral-7B-Instruct-v0.3-heretic",
            model="mistralai/Mistral-7B-Instruct-v0.3",
            n_layers=32,
            refusals=(None, 4),
            kl=0.0606,
            direction_index=16.87,
            attn_out=Kernel(1.44, 24.50, 1.01, 13.91),
            mlp_out=Kernel(1.18, 20.94, 1.16, 8.36),
        ),
    ),
    "granite": (
        Published(
            card="richardyoung/granite-4.2-8b-heretic",
            model="ibm-granite/granite-4.2-8b",
            n_layers=40,
            refusals=(99, 12),
            kl=0.0801,
            direction_index=28.79,
            attn_out=Kernel(1.45, 25.26, 1.40, 22.32),
            mlp_out=Kernel(1.48, 34.98, 1.43, 18.99),
        ),
    ),
}
"""By family."""
