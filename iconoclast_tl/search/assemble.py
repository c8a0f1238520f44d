"""A search put together: from a model, directions, activations and settings to the `Job` of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.architecture.parts import every_head, head_factors, neuron_factors
from iconoclast_tl.architecture.sites import Component
from iconoclast_tl.attribution.attribute import direction_of, top_heads
from iconoclast_tl.attribution.config import AttributionConfig
from iconoclast_tl.attribution.ranking import top_neurons
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.estimators.registry import ESTIMATORS
from iconoclast_tl.directions.sets import UNFILTERED, DirectionSets, set_name
from iconoclast_tl.edits.ablation import ablate
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.ground import ground_of
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.foundation.progress import Say, Track
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.families import Source
from iconoclast_tl.search.job import Job
from iconoclast_tl.search.requirements import affine_can_be_kept, edited_writers
from iconoclast_tl.search.warm_start import warm_start

N_NEURONS = 256
"""Neurons of the profile `neuron`, where no number is given."""

Parts = Mapping[Component, Float[Tensor, "layer part"]]


@dataclass(frozen=True)
class RankedParts:
    """The heads or neurons that are edited: the first by attribution, as `layer.number`."""

    kind: Literal["head", "neuron"]
    names: list[str]

    def __str__(self) -> str:
        """Such as `only these heads are edited: 2.0, 3.1`."""
        shown = ", ".join(self.names[:12]) + (" …" if len(self.names) > 12 else "")
        return f"only these {self.kind}s are edited: {shown}"

    def to_json(self) -> dict[str, Any]:
        """As files keep it; `RankedParts(**…)` reads it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a search is over, and its settings."""

    model: Model
    directions: Directions
    acts: Activations
    search: SearchConfig
    edit: EditConfig
    scores: ScoreConfig
    estimated: DirectionConfig | None
    """How the directions were estimated. None: they are given, and no other sets of directions are tried."""
    seed: int = 0
    merge: bool = False
    """Whether the edit must be one that plain weights can hold."""

    @cached_property
    def affine(self) -> tuple[bool, ...]:
        """The kinds of edit that are searched: the one that is set; else affine where it can be kept, plain elsewhere.

        Losses at the prices at which families compete hardly tell the two kinds apart. Yet plain edits remove less on
        organisms (experiments/directions/README.md), and left more responses that loop on a real model
        (experiments/real/README.md). So they do not compete; only the outer study, which generates from every trial,
        tries both, and `tpe`, like the searches of others, is of plain ones.
        """
        if self.edit.affine is not None:
            return (self.edit.affine,)
        if self.search.method == "tpe" or not affine_can_be_kept(self.model, self.merge):
            return (False,)
        return (False, True) if self.search.method == "outer" else (True,)

    @cached_property
    def other_sets(self) -> dict[str, DirectionConfig]:
        """Sets of directions beside those given: what `outer` may choose; else, of filtered ones, unfiltered."""
        config, outer = self.estimated, self.search.outer
        if config is None:
            return {}
        if self.search.method == "outer":
            names = ("estimator", "orthogonalize", "benign_rank")
            every = product(outer.estimators, (False, True), outer.benign_ranks)
            found = [config.model_copy(update=dict(zip(names, values, strict=True))) for values in every]
            return {set_name(one): one for one in found}
        if config.orthogonalize or config.benign_rank:
            return {UNFILTERED: config.model_copy(update={"orthogonalize": False, "benign_rank": 0})}
        return {}

    @property
    def needs_labels(self) -> bool:
        """Whether a set of directions is estimated from what the model did (`directions.estimate`)."""
        return any(ESTIMATORS[config.estimator].labels for config in self.other_sets.values())

    @property
    def ranks_parts(self) -> bool:
        """Whether the heads or neurons that are edited are found by attribution."""
        return self.search.top_k is not None or self.search.gradient.profile == "neuron"


def ranked_parts(inputs: Inputs, base: Callable[[], Baseline], config: AttributionConfig) -> RankedParts:
    """The first heads by `search.by`, or the first neurons, along the best separating direction.

    base: the unedited model on the train prompts by which heads are ranked, made only for heads. Raises `UserError`
    where there are fewer.
    """
    model, directions, search = inputs.model, inputs.directions, inputs.search
    point = directions.best
    if search.gradient.profile == "neuron":
        vector = directions.at(point)
        return RankedParts("neuron", top_neurons(model, inputs.acts, vector, search.top_k or N_NEURONS))
    kind = inputs.edit.model_copy(update={"affine": True in inputs.affine, "row_normalization": "none"})
    edit = ablate(
        model,
        directions.span(point),
        weights=directions.weights_at(point),
        acts=inputs.acts,
        config=kind,
        position=directions.position,
    )
    along = direction_of(edit, directions, model)
    names = top_heads(base(), edit, search.top_k or 1, search.by, config, inputs.scores, along=along, acts=inputs.acts)
    return RankedParts("head", names)


def meant_parts(inputs: Inputs, ranked: RankedParts | None) -> Parts:
    """Which heads and neurons are meant: those that were ranked, those that the settings name, or all heads."""
    hf = inputs.model.hf
    if ranked is None:
        named = dict(ground_of(inputs.model, inputs.edit).parts)
        return {"attn_out": every_head(hf), **named} if inputs.search.gradient.profile == "head" else named
    nothing = torch.zeros(inputs.model.n_layers, 1)
    if ranked.kind == "neuron":
        return {"attn_out": nothing, "mlp_out": neuron_factors(ranked.names, hf)}
    return {"attn_out": head_factors(ranked.names, hf), "mlp_out": nothing}


def make_job(
    inputs: Inputs,
    *,
    train: Baseline,
    val: Baseline,
    ranked: RankedParts | None,
    labels: Bool[Tensor, "rows"] | None,
    journal: Path,
    trace: Path,
    track: Track,
    say: Say,
) -> Job:
    """The job of `search.methods.find`.

    ranked: where `inputs.ranks_parts`. labels: where `inputs.needs_labels`, whether each train prompt's response shows
    the behaviour, target prompts first. journal, trace: the files that the search keeps itself in.
    """
    model, directions, edit, search = inputs.model, inputs.directions, inputs.edit, inputs.search
    parts = meant_parts(inputs, ranked)
    ground = replace(ground_of(model, edit, inputs.acts, directions.position), parts=parts)
    return Job(
        sites=model.sites,
        train=train,
        val=val,
        source=Source(DirectionSets(directions, inputs.acts, inputs.other_sets, labels), edit, ground),
        config=_with_readable_rows(search, model, bool(parts)),
        scores=inputs.scores,
        seed=inputs.seed,
        journal=journal,
        trace=trace,
        affine=inputs.affine,
        track=track,
        say=say,
        warm_start=warm_start(model.hf.config) if search.warm_start else None,
    )


def _with_readable_rows(search: SearchConfig, model: Model, parts: bool) -> SearchConfig:
    """The settings without row normalisations, which quantised weights, experts and single heads do not have."""
    dense = all(writer.is_dense for writer in edited_writers(model).values())
    if dense and not parts and model.quantization == "none":
        return search
    return search.model_copy(update={"outer": search.outer.model_copy(update={"row_normalizations": ("none",)})})
