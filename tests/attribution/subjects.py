"""Random models with an edit, scores and prompts: what every method of attribution is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from iconoclast_tl.architecture.hook_points import HookedModule, hf_sites
from iconoclast_tl.architecture.post_norm import post_norm_gains
from iconoclast_tl.architecture.sites import Site
from iconoclast_tl.attribution.subject import Subject, make_subject
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit, make_edit
from iconoclast_tl.edits.ground import Ground
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.log_odds import LogOdds
from iconoclast_tl.scores.logit_difference import LogitDifference
from iconoclast_tl.scores.prefixes import Prefixes
from iconoclast_tl.scores.projection import Projection
from iconoclast_tl.scores.score import Score
from tests.activations.last_position import collect_last_position
from tests.architectures import save_architecture

NAMES = (
    "Llama", "Llama, biases", "Falcon (7B layout)", "Falcon (new decoder)", "GPT-2", "GPT-NeoX, parallel", "Phi-3",
    "OPT", "Gemma 2", "OLMo 2", "Granite", "Mixtral",
)  # fmt: skip
"""Grouped, single and full heads, fused queries, biases, parallel blocks, post-norms, scaled writes, experts."""
FEW = ("Llama, biases", "Falcon (new decoder)", "GPT-2", "OPT", "Gemma 2", "Mixtral")
"""Of these, where a loop over parts takes its time."""


@dataclass(frozen=True)
class Case:
    """One model with an edit taken apart."""

    model: Model
    sites: dict[Site, HookedModule]
    ground: Ground
    edit: Edit
    subject: Subject
    direction: torch.Tensor


def make_case(
    name: str, folder: Path, load: Callable[..., Model], rows: list[list[int]], affine: bool = False, k: int = 1
) -> Case:
    """Random directions; strengths from 0.2 to 1.2, another at every site; layer 1's MLP left alone."""
    model = load(save_architecture(folder / "model", name))
    return case_of(model, rows, affine and name != "Mixtral", k)


def case_of(model: Model, rows: list[list[int]], affine: bool = False, k: int = 1) -> Case:
    """The same on a model that is there."""
    generator = torch.Generator().manual_seed(3)
    found = collect_last_position(model, None, rows, 8)
    writes, reads = ({name: one.mean for name, one in kind.items()} for kind in (found.writes, found.reads))
    means = {**writes, "resid_pre": found.residuals[:, :-1].double().mean(0)}
    sites = hf_sites(model.hf)
    ground = Ground(neutral_writes=means, neutral_reads=reads, gains=post_norm_gains(model.hf), sites=sites)
    vectors = torch.randn(k, model.n_layers, model.d_model, generator=generator)
    strengths: dict[Any, torch.Tensor] = {
        name: 0.2 + torch.rand(model.n_layers, generator=generator) for name in ("attn_out", "mlp_out")
    }
    strengths["mlp_out"][1] = 0.0
    edit = make_edit(vectors, strengths, EditConfig(affine=affine), ground)
    direction = torch.nn.functional.normalize(torch.randn(model.d_model, generator=generator), dim=0)
    return Case(model, sites, ground, edit, make_subject(edit, ground, model), direction)


def scores(model: Model, rows: list[list[int]], direction: torch.Tensor) -> dict[str, Score]:
    """One of each kind; the log-odds' trees differ from prompt to prompt."""
    prefixes = Prefixes(len(rows))
    prefixes.add_innocent((9, 10, 11))
    for prompt in range(len(rows)):
        prefixes.add_opening(prompt, (9, 12 + prompt % 2, 20))
        if prompt % 3 == 0:
            prefixes.add_opening(prompt, (13,))
    return {
        "projection": Projection(model, rows, direction),
        "logit": LogitDifference(model, rows, torch.tensor([9, 10]), torch.tensor([11, 12, 13])),
        "log-odds": LogOdds(model, rows, prefixes.layout()),
    }
