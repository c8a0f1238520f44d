"""`search_strengths`: the search of a notebook, from a model, a contrast set and directions; no run folder."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from iconoclast_tl.activations.collect import collect, require_same_prompts
from iconoclast_tl.activations.store import Activations
from iconoclast_tl.attribution.config import AttributionConfig
from iconoclast_tl.detectors.detector import Detector
from iconoclast_tl.detectors.registry import search_detector
from iconoclast_tl.directions.config import DirectionConfig
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.edits.config import EditConfig
from iconoclast_tl.edits.ground import require_same_model
from iconoclast_tl.evaluation.baseline import Baseline, baseline, require_room
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.foundation.stage_config import StageConfig, is_changeable, validated
from iconoclast_tl.foundation.storage import as_json, read_json, write_json
from iconoclast_tl.models.model import Model, require_model
from iconoclast_tl.prompts.contrast import ContrastSet, require_contrast_set
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.search.assemble import Inputs, RankedParts, make_job, ranked_parts
from iconoclast_tl.search.config import SearchConfig
from iconoclast_tl.search.job import Found
from iconoclast_tl.search.methods import find
from iconoclast_tl.search.presets import PRESETS
from iconoclast_tl.search.requirements import require_own_directions, require_searchable


def search_strengths(
    model: Model,
    data: ContrastSet,
    directions: Directions,
    *,
    acts: Activations | None = None,
    config: SearchConfig | None = None,
    edit: EditConfig | None = None,
    scores: ScoreConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    detector: Detector | None = None,
    seed: int = 0,
    track: Track = silent,
    say: Say = unheard,
    folder: str | PathLike[str] | None = None,
    **settings: Any,
) -> Found:
    """Search the strengths that change a behaviour most and everything else least; nothing is written into the model.

        found = search_strengths(model, data, directions, acts=acts)
        with found.edit.on(model): ...

    The search sees `data.train` and confirms its candidates by generation on `data.val`; `data.test` is never looked
    at. By default it goes by gradient (`method="tpe"` and `"outer"` are Optuna's). Families of edits compete: one
    direction for all layers, taken at one of several residual points, or each layer's own; along `directions` as they
    are and, where their provenance says that they were filtered, along the same without filters. They are affine where
    the edit can be kept so (`edit=EditConfig(affine=False)`: plain). `outer` also chooses between plain and affine, and
    among estimators and filters. Directions that do not say how they were estimated are used as they are.

    acts: the activations that the directions were estimated from; collected here where they are not given. settings:
    those of `SearchConfig`, nested ones as dicts (`gradient={"profile": "head"}`), over the preset's; or all of them as
    `config`. edit, scores, evaluation, detector: the kind of edit, how the behaviour is scored, how long
    responses are, and what shows the behaviour. folder: where the search keeps its trials or points, so that one that
    was stopped goes on; by default a temporary folder.

    Raises `UserError` for directions or activations of another model, an empty split, a base that never shows the
    behaviour (or always, where it is to be strengthened), settings that do not fit, edits that could not be folded, and
    a folder that holds the search of something else.
    """
    require_model(model)
    require_contrast_set(data, filled=())
    config, edit = _settings(config, edit, settings)
    edit = edit.model_copy(update={"attention_only": True}) if model.attention_only else edit
    evaluation = EvaluationConfig() if evaluation is None else evaluation
    require_own_directions(directions, model, say)
    require_searchable(model, edit, config)
    evaluation = evaluation.shortened(config.max_new_tokens)
    base = _Base(model, data, evaluation, search_detector(evaluation) if detector is None else detector, track)
    base.check()
    if acts is None:
        acts = collect(model, data, positions=-directions.position, track=track, say=say)
    require_same_model(acts, model)
    require_same_prompts(acts, data)
    inputs = Inputs(
        model=model,
        directions=directions,
        acts=acts,
        search=config,
        edit=edit,
        scores=ScoreConfig() if scores is None else scores,
        estimated=estimated_by(directions),
        seed=seed,
    )
    with _kept_in(None if folder is None else Path(folder)) as place:
        kept = SearchFile(place / "search.json", _about(inputs, base))
        base = base.measured(kept)
        job = make_job(
            inputs,
            train=base.of("train", config.gradient.prompts),
            val=base.of("val"),
            ranked=_ranked(inputs, base, kept, say) if inputs.ranks_parts else None,
            labels=base.labels() if inputs.needs_labels else None,
            journal=place / "study.journal",
            trace=place / "trace.json",
            track=track,
            say=say,
        )
        found = find(job)
    _ = found.edit  # raises here where no candidate meets the rule
    return found


def estimated_by(directions: Directions) -> DirectionConfig | None:
    """How directions were estimated, by their provenance; None where it does not say."""
    content = directions.provenance.get("directions")
    if not content or content.get("file"):
        return None
    return validated(DirectionConfig, content)


def _settings(
    config: SearchConfig | None, edit: EditConfig | None, settings: Mapping[str, Any]
) -> tuple[SearchConfig, EditConfig]:
    """What is set, over the defaults of the preset that is named."""
    if config is not None and settings:
        raise UserError("settings are passed twice", got=f"config and {', '.join(settings)}", want="one of them")
    if config is not None:
        preset = type(config).model_fields["preset"].default
        if config.preset != preset:
            raise UserError(
                "a preset is laid under the settings that are given, not under a whole config",
                got=f"config with preset {config.preset}",
                mend=f'pass preset="{config.preset}" and the other settings one by one',
            )
        return config, EditConfig() if edit is None else edit
    preset = PRESETS.get(str(settings.get("preset", "iconoclast")), {})  # one that there is not fails below
    found = validated(SearchConfig, _merged(preset.get("search", {}), settings))
    return found, validated(EditConfig, preset.get("edit", {})) if edit is None else edit


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(low[key], value) if isinstance(value, Mapping) and isinstance(low.get(key), Mapping) else value
        for key, value in high.items()
    }
    return {**low, **both}


@dataclass(frozen=True)
class _Base:
    """The unedited model on the splits of one contrast set."""

    model: Model
    data: ContrastSet
    evaluation: EvaluationConfig
    detector: Detector
    track: Track

    def of(self, split: str, at_most: int | None = None) -> Baseline:
        """On the first prompts of a split."""
        prompts = replace(self.data.of(split), borderline=())
        return baseline(self.model, prompts, self.evaluation, self.detector, at_most, self.track)

    def check(self) -> None:
        """Raise `UserError` for a split without prompts, prompts that do not fit, and a detector without room."""
        quick = replace(self, evaluation=self.evaluation.model_copy(update={"batch_size": 1}))
        for split in ("train", "val"):
            quick.of(split)
        require_room(self.detector)

    def measured(self, kept: SearchFile) -> _Base:
        """With the batch size that a search began with, since batches round differently, or that is measured now."""
        rows = kept.once("batch_size", lambda: self.of("val").config.batch_size)
        return replace(self, evaluation=self.evaluation.model_copy(update={"batch_size": rows}))

    def labels(self) -> Bool[Tensor, "rows"]:
        """Whether the response to each train prompt shows the behaviour, target prompts first."""
        shows = self.of("train").shows
        return torch.tensor([*shows["target"], *shows["neutral"]])


class SearchFile:
    """The file that identifies the search of a folder, with what was measured when it began."""

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        """Begin it, or go on with it; `UserError` where it is of something else."""
        self._file = file
        if not file.is_file():
            self._content = dict(about)
            write_json(file, self._content)
            return
        self._content = dict(read_json(file))
        if changed := [name for name, value in about.items() if self._content.get(name) != value]:
            raise UserError(
                f"{file.parent} holds the search of something else",
                got=f"other {', '.join(changed)}",
                mend="pass another folder",
            )

    def once(self, name: str, find_out: Callable[[], Any]) -> Any:
        """What was found out before under this name, or is now."""
        if name not in self._content:
            self._content[name] = find_out()
            write_json(self._file, self._content)
        return self._content[name]


def _ranked(inputs: Inputs, base: _Base, kept: SearchFile, say: Say) -> RankedParts:
    config = AttributionConfig()

    def rank() -> dict[str, Any]:
        ranked = ranked_parts(inputs, lambda: base.of("train", config.prompts), config)
        say(str(ranked))
        return ranked.to_json()

    return RankedParts(**kept.once("ranked", rank))


@contextmanager
def _kept_in(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _about(inputs: Inputs, base: _Base) -> dict[str, Any]:
    """All that a search's numbers depend on."""
    return {
        "model": inputs.model.fingerprint,
        "dtype": inputs.model.dtype,
        "rendered": _rendered(inputs.model, base.data),
        "activations": _means_digest(inputs.acts),
        "estimator": None if inputs.estimated is None else _lasting(inputs.estimated),
        "prompts": {name: digest for name, digest in base.data.digests().items() if name.endswith(("train", "val"))},
        "directions": inputs.directions.digest(),
        "search": _lasting(inputs.search),
        "edit": _lasting(inputs.edit),
        "scores": _lasting(inputs.scores),
        "evaluation": _lasting(base.evaluation),
        "detector": as_json(base.detector.about()),
        "seed": inputs.seed,
    }


def _rendered(model: Model, data: ContrastSet) -> str:
    """What tokenizer, template and system message make of the first prompts: other ones change every number."""
    rows = [model.chat.encode(prompt) for split in (data.train, data.val) for prompt in split.target[:4]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _means_digest(acts: Activations) -> str:
    """Names activations by the means that edits take from them."""
    state = hashlib.sha256()
    for mean in acts.neutral_means.values():
        state.update(mean.double().contiguous().numpy().tobytes())
    return state.hexdigest()


def _lasting(config: StageConfig) -> dict[str, Any]:
    """The settings that may not change while a search goes on."""
    changeable = {name for name in type(config).model_fields if is_changeable(type(config), name)}
    return config.model_dump(mode="json", exclude=changeable)
