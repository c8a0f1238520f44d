"""`attribute`: which heads and MLPs carry a behaviour, from a model, a contrast set and an edit; no run folder.

The score is taken of target prompts, each matched with the neutral prompt that differs from it at the fewest positions
(`attribution.matching`). Every method then says what each part contributes to it under the edit (`attribution.study`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.collect import require_same_prompts
from iconoclast_tl.activations.store import Activations
from iconoclast_tl.attribution.behaviour_scores import matched_scores
from iconoclast_tl.attribution.config import METHODS, AttributionConfig, MethodName
from iconoclast_tl.attribution.matching import matched
from iconoclast_tl.attribution.parts import Part, require_parts
from iconoclast_tl.attribution.ranking import require_ranking
from iconoclast_tl.attribution.study import Study, StudyInputs, study
from iconoclast_tl.attribution.subject import Subject, make_subject
from iconoclast_tl.detectors.detector import Detector
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.edits.ablation import ablate, require_width
from iconoclast_tl.edits.completeness import require_complete
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.ground import ground_of
from iconoclast_tl.edits.hooks import sites_of
from iconoclast_tl.evaluation.baseline import Baseline, baseline, require_room
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.foundation.stage_config import validated
from iconoclast_tl.models.model import Model, require_model
from iconoclast_tl.prompts.contrast import ContrastSet, require_contrast_set
from iconoclast_tl.scores.config import ScoreConfig

DEFAULT_METHOD: MethodName = "integrated"


@dataclass(frozen=True)
class NamedDirection:
    """The direction of the projection and of direct attribution, and what reports call it."""

    vector: Float[Tensor, "d_model"]
    name: str


def attribute(
    model: Model,
    data: ContrastSet,
    edit: Edit | Directions | Float[Tensor, "*k d_model"],
    *,
    method: str | Sequence[str] | None = None,
    acts: Activations | None = None,
    direction: Directions | Float[Tensor, "d_model"] | None = None,
    split: str = "train",
    config: AttributionConfig | None = None,
    scores: ScoreConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    detector: Detector | None = None,
    only: Collection[Part | str] | None = None,
    track: Track = silent,
    say: Say = unheard,
    **settings: Any,
) -> Study:
    """Attribute a behaviour to the embedding, every head and every MLP of a model.

        heads = attribute(model, data, edit, method="integrated").top(10)

    edit: the edit under which parts are attributed. A direction, or `Directions`, means λ = 1 everywhere along it.
    method: `direct`, `gradient`, `integrated` (the default), `ablate`, `restore` or `interchange`, or several of them.
    acts: the neutral means that an affine edit is taken apart with; with them the study also says how the projection
    on the direction builds up from layer to layer. direction: of `direct` and of `score="projection"`; by default the
    edit's own, where all its layers have the same. only: the parts to attribute to, such as `["L3H2", "L3 MLP"]`.

    settings: those of `AttributionConfig`, such as `prompts=8` and `score="logit"`; or all of them at once as `config`.
    scores, evaluation, detector: how the behaviour is scored, how long responses are, and what shows the behaviour.

    Raises `UserError` for an edit or activations of another model, an edit that does not fall into parts, an unknown
    method or part, a split that is not there or is empty, and prompts that the score does not tell apart.
    """
    require_model(model)
    require_contrast_set(data, filled=())
    config = _settings(config, method, settings)
    require_complete(model)
    edit, name = _as_edit(model, edit)
    along = _named(direction, model) if isinstance(direction, Directions) else direction_of(edit, direction, model)
    if acts is not None:
        require_same_prompts(acts, data)
    base = baseline(model, replace(data.of(split), borderline=()), evaluation, detector, config.prompts, track)
    if config.score == "log-odds":
        require_room(base.detector)
    return study_of(
        base, edit, config, scores or ScoreConfig(), along=along, acts=acts, name=name, split=split,
        only=require_parts(only, model), leave_out=say if config.methods == METHODS else None, say=say,
    )  # fmt: skip


def study_of(
    base: Baseline,
    edit: Edit,
    config: AttributionConfig,
    scores: ScoreConfig,
    *,
    along: NamedDirection | None,
    acts: Activations | None,
    name: str,
    split: str = "train",
    only: Collection[Part] | None = None,
    leave_out: Say | None = None,
    say: Say = unheard,
) -> Study:
    """`attribute` on a baseline that is there, by `config.methods`. name: what reports call the edit.

    leave_out: called with the reason where direct attribution is not possible; None: the reason is raised.
    """
    model = base.model
    if along is None and "direct" in config.methods:
        raise UserError(
            "direct attribution is along one direction",
            got="an edit whose layers have different directions",
            mend="pass direction=, such as directions.at(5), or leave direct out",
        )
    if model.dtype not in ("float32", "float64"):
        say(f"warning: differences of scores are small beside the rounding of {model.dtype}")
    subject = subject_of(model, edit, acts)
    target_rows, neutrals = base.suite["target"].rows, base.suite["neutral"].rows
    neutral_rows = [neutrals[number] for number in matched(target_rows, neutrals)]
    vector = None if along is None else along.vector
    pair = matched_scores(config.score, base, neutral_rows, vector, scores, split)
    inputs = StudyInputs(
        target=pair.target,
        neutral=pair.neutral,
        subject=subject,
        target_rows=target_rows,
        neutral_rows=neutral_rows,
        along=pair.along,
        batch_size=base.config.batch_rows if config.batch_size == "auto" else config.batch_size,
        gradient_batch_size=config.gradient_batch_size,
        only=None if only is None else frozenset(only),
        track=base.track,
        leave_out=leave_out,
    )
    accumulated = {} if along is None or acts is None else projections_by_point(acts, along.vector)
    direction = "no direction" if along is None else along.name
    return study(inputs, config, edit=name, direction=direction, accumulated=accumulated)


def top_heads(
    base: Baseline,
    edit: Edit,
    k: int,
    method: MethodName,
    config: AttributionConfig,
    scores: ScoreConfig,
    *,
    along: NamedDirection | None,
    acts: Activations | None,
) -> list[str]:
    """The first k heads by one method under an edit, as `layer.head`. Raises `UserError` where there are fewer."""
    require_ranking((method,), base.model, k, None)
    config = config.model_copy(update={"methods": (method,), "cumulative": False})
    found = study_of(base, edit, config, scores, along=along, acts=acts, name="the edit")
    return [f"{part.layer}.{part.head}" for part in found.ranking(method).top(k, "head")]


def subject_of(model: Model, edit: Edit, acts: Activations | None = None) -> Subject:
    """An edit taken apart into heads, MLPs and the embedding, with the neutral means of `acts` where it is affine.

    Raises `UserError` for an edit or activations of another model, and for an edit that does not fall into parts.
    """
    sites_of(model, edit)  # raises for an edit of another model
    if edit.is_affine and acts is None:
        raise UserError(
            "an affine edit is taken apart with the neutral means of every part",
            want="the activations that it was made with",
            mend="pass acts=collect(model, data)",
        )
    return make_subject(edit, ground_of(model, EditConfig(), acts), model)


def _named(directions: Directions, model: Model) -> NamedDirection:
    """The best separating one of directions that are named: they are taken before the edit's own."""
    require_width(directions.vectors, model)
    return NamedDirection(directions.at(directions.best), f"the direction of point {directions.best}")


def direction_of(
    edit: Edit, given: Directions | Float[Tensor, "d_model"] | None, model: Model
) -> NamedDirection | None:
    """The one direction to project on: the tensor that is given, the edit's own, or the best separating one given.

    An edit has a direction of its own where all its layers have the same. None where there is none of the three.
    """
    if isinstance(given, Tensor):
        require_width(given, model)
        return NamedDirection(normalize(given.float()), "the direction given")
    first = edit.directions[0, 0]
    if len(edit.directions) == 1 and bool(first.any()) and torch.allclose(edit.directions[0], first, atol=1e-6):
        return NamedDirection(first, "the edit's direction")
    if given is None:
        return None
    require_width(given.vectors, model)
    point = given.best
    return NamedDirection(given.at(point), f"the direction of point {point} (the edit has others in its layers)")


def projections_by_point(acts: Activations, vector: Float[Tensor, "d_model"]) -> Mapping[str, Float[Tensor, "point"]]:
    """Side → the mean projection of the train prompts' last token on a vector, at every residual point, float64."""
    sides = {"target": acts.target_train, "neutral": acts.neutral_train}
    return {side: (residuals.double() @ vector.double()).mean(0) for side, residuals in sides.items()}


def _settings(
    config: AttributionConfig | None, method: str | Sequence[str] | None, settings: Mapping[str, Any]
) -> AttributionConfig:
    """The settings with the methods that are named; `UserError` for what there is not."""
    if config is not None and settings:
        raise UserError("settings are passed twice", got=f"config and {', '.join(settings)}", want="one of them")
    methods: tuple[str, ...] | None = None
    if method is not None:
        methods = (method,) if isinstance(method, str) else tuple(method)
    elif config is None and "methods" not in settings:
        methods = (DEFAULT_METHOD,)
    for name in methods or ():
        if name not in METHODS:
            raise UserError(f"there is no method {name!r}", want=f"one of {', '.join(METHODS)}")
    named = {} if methods is None else {"methods": methods}
    if config is None:
        return validated(AttributionConfig, {**settings, **named})
    return validated(AttributionConfig, {**config.model_dump(), **named})


def _as_edit(model: Model, edit: Edit | Directions | Tensor) -> tuple[Edit, str]:
    """The edit, and what reports call it."""
    if isinstance(edit, Edit):
        return edit, str(edit)
    own = "each layer's own direction" if isinstance(edit, Directions) else "the direction given"
    return ablate(model, edit), f"λ = 1 everywhere along {own}"
