"""The evaluation of a model, of an edit or of an adapter, on plain objects.

    print(evaluate(model, data.test, edit=edit))
    # Evaluation(behaviour 100.0% [96.3, 100.0] → 1.0% [0.2, 5.4], spill 0.0% [0.0, 3.7] → …, KL 0.0008 nats, …)

Target and neutral prompts (and borderline ones, where there are any) are asked of the base and of the changed model,
greedily. Rates carry 95% Wilson intervals; base and edited are compared prompt by prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any

from iconoclast_tl.detectors.detector import UNLABELLED, Detector, Label, label_all
from iconoclast_tl.detectors.registry import detector_names, make_detector
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.hooks import preview, sites_of
from iconoclast_tl.evaluation.agreement import accuracies, agreements
from iconoclast_tl.evaluation.base_and_edited import ChangedModel, ask_base_and_edited
from iconoclast_tl.evaluation.baseline import baseline, require_room
from iconoclast_tl.evaluation.corpora import ON_DISTRIBUTION
from iconoclast_tl.evaluation.metrics.divergence import Divergence
from iconoclast_tl.evaluation.scoring import Measured, by_budget, by_detector, measure, paired
from iconoclast_tl.evaluation.side_effects import cross_entropies, load_corpora, own_responses
from iconoclast_tl.evaluation.suite import EvaluationConfig, Truth
from iconoclast_tl.evaluation.transcript import Transcript, TranscriptRow, by_set, models_of, with_labels
from iconoclast_tl.foundation.drawing import Drawn
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Say, Track, silent, unheard
from iconoclast_tl.foundation.stage_config import validated
from iconoclast_tl.foundation.storage import as_json
from iconoclast_tl.models.adapter import loaded_adapter
from iconoclast_tl.models.model import Model
from iconoclast_tl.organisms.grammar import grade, parse_prompt
from iconoclast_tl.prompts.contrast import Split
from iconoclast_tl.statistics.paired_rates import PairedRates
from iconoclast_tl.statistics.rates import Rate


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation(Drawn):
    """What a model, and a changed one beside it, said to the prompts of a split, and the measures of that."""

    rows: Transcript
    """Prompt by prompt: what `base` and `edited` said, with labels, grades and KL."""
    detector: str
    """The detector by which `measured` and `paired` are."""
    detectors: Mapping[str, Mapping[str, Any]]
    """Every detector that was asked → what it says of itself."""
    budget: int
    """Tokens that a response may have."""
    divergences: Mapping[str, Divergence]
    """Model → KL(base ‖ model) on neutral prompts."""
    by_budget: Mapping[str, Any]
    """Model → smaller budget → set → rate, where `budgets` asks for some."""
    cross_entropy: Mapping[str, Any]
    """Corpus → model → nats a token and perplexity, and their paired difference."""

    @cached_property
    def measured(self) -> dict[str, Measured]:
        """`base` and, where there is a change, `edited` → rates with their intervals."""
        return {model: measure(self.rows, model, self.detector, self.budget) for model in models_of(self.rows)}

    @property
    def base(self) -> Measured:
        """Of the model alone."""
        return self.measured["base"]

    @property
    def edited(self) -> Measured | None:
        """Of the model under the edit or with the adapter; None where there was none."""
        return self.measured.get("edited")

    @cached_property
    def paired(self) -> dict[str, PairedRates]:
        """Set → base against edited, prompt by prompt; empty where there is no change."""
        return paired(self.rows, self.detector) if self.edited is not None else {}

    def to_json(self) -> dict[str, Any]:
        """The measures, as they stand in results.json."""
        parts = measures(self.rows, self.detector, self.budget, self.detectors, self.by_budget)
        for model, one in self.divergences.items():
            parts[model] = {**one.to_json(), **parts[model]}
        return {**parts, "cross_entropy": dict(self.cross_entropy)}

    def __repr__(self) -> str:
        """One line: behaviour and spill with their intervals, KL, prompts and response budget."""
        said = [
            f"{name} {_before_and_after(*(getattr(one, key) for one in self.measured.values()))}"
            for name, key in (("behaviour", "behaviour_rate"), ("spill", "spill_rate"))
        ]
        if "edited" in self.divergences:
            kl = self.divergences["edited"]
            said.append(f"KL {kl.sequence:.4f} nats over {kl.tokens} tokens")
        counts = " + ".join(f"{len(rows)} {name}" for name, rows in by_set(self.rows).items())
        return f"Evaluation({', '.join(said)}; n = {counts}, {self.budget} tokens)"

    def _repr_html_(self) -> str:
        """A table for notebooks: rates with their intervals and KL, base beside edited."""
        named = [
            ("behaviour rate, target", "behaviour_rate"),
            ("spill rate, neutral", "spill_rate"),
            ("spill rate, borderline", "spill_rate_borderline"),
            ("compliance heuristic, target", "compliance_rate"),
        ]
        table = {label: [_percent(getattr(one, key)) for one in self.measured.values()] for label, key in named}
        tokens = self.divergences["base"].tokens
        table[f"KL over {tokens} tokens, nats"] = [f"{one.sequence:.4f}" for one in self.divergences.values()]
        head = "".join(f"<th>{model}</th>" for model in self.measured)
        rows = [(label, "".join(f"<td>{cell}</td>" for cell in cells)) for label, cells in table.items()]
        body = "".join(f"<tr><th>{label}</th>{cells}</tr>" for label, cells in rows)
        budget, by = f"greedy responses of at most {self.budget} tokens", f"labels by {escape(self.detector)}"
        caption = f"<caption>95% Wilson intervals; {budget}; {by}</caption>"
        return f"<table>{caption}<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def evaluate(
    model: Model,
    prompts: Split,
    *,
    edit: Edit | None = None,
    adapter: str | PathLike[str] | None = None,
    detector: Detector | str | None = None,
    config: EvaluationConfig | None = None,
    truth: Truth | str | None = None,
    track: Track = silent,
    say: Say = unheard,
    **settings: Any,
) -> Evaluation:
    """Ask a split, such as `data.test`, of a model, and of the model under an edit or with a PEFT adapter.

    detector: says which responses show the behaviour, or its name; by default what the settings name. config, settings:
    those of `EvaluationConfig`, such as `max_new_tokens=128`, `markers=["i cannot"]`, `detectors=("markers:arditi",)`.
    truth: (prompt, response) → answered, refused or broken; `organism` for a shipped organism asked its own prompts.

    Raises `UserError` for a split that lacks target or neutral prompts, an edit or an adapter of another model, a
    folder without an adapter, an unknown setting, and a detector that does not fit into memory beside the model.
    """
    if isinstance(detector, str):
        settings, detector = {**settings, "detector": detector}, None
    config = validated(EvaluationConfig, {**(config.model_dump() if config else {}), **settings})
    config.require_possible()
    change, grades = _change(model, edit, adapter), _truth(truth, prompts)
    made = _detectors(config, detector)
    primary = next(iter(made.values()))
    base, corpora = baseline(model, prompts, config, primary, track=track), load_corpora(config, model)
    compared = ask_base_and_edited(base, change, grades)
    rows, about, budgets = compared.transcript(), dict[str, Any](), dict[str, Any]()
    for name, one in made.items():
        try:
            rows = labelled(rows, one, track, say)
            about[name] = {"about": as_json(one.about()), "remarks": as_json(one.remarks)}
            if one is primary and config.budgets:
                budgets = by_budget(rows, sorted(set(config.budgets)), partial(_labels_within, one, track))
        finally:
            if one is not detector:
                one.close()
    if ON_DISTRIBUTION in config.corpora:
        corpora = {ON_DISTRIBUTION: own_responses(base), **corpora}
    return Evaluation(
        rows=rows,
        detector=primary.name,
        detectors=about,
        budget=config.max_new_tokens,
        divergences=compared.divergences,
        by_budget=budgets,
        cross_entropy=cross_entropies(base, corpora, change),
    )


def labelled(rows: Transcript, detector: Detector, track: Track = silent, say: Say = unheard) -> list[TranscriptRow]:
    """The rows with the labels of a detector; says how many responses it could not label."""
    models = models_of(rows)
    labels = label_all(detector, [row.exchange(model) for model in models for row in rows], track)
    tell_unlabelled(detector, labels, say)
    parts = {model: labels[start * len(rows) : (start + 1) * len(rows)] for start, model in enumerate(models)}
    return with_labels(rows, detector.name, parts)


def tell_unlabelled(detector: Detector, labels: Sequence[Label], say: Say) -> None:
    """Say how many responses a detector could not label."""
    n = sum(label.name == UNLABELLED for label in labels)
    if n:
        say(f"{detector.name}: {n} of {len(labels)} responses are unlabelled; they are in no rate")


def measures(
    rows: Transcript,
    detector: str,
    budget: int,
    detectors: Mapping[str, Mapping[str, Any]],
    budgets: Mapping[str, Any],
) -> dict[str, Any]:
    """All that a labelled transcript says, as it stands in results.json.

    detector: by which the rates are. detectors: what each detector says of itself. budgets: of `scoring.by_budget`.
    """
    models = models_of(rows)
    parts: dict[str, Any] = {"detector": detector, "budget": budget}
    for model in models:
        rates = {"by_budget": budgets[model]} if budgets else {}
        parts[model] = {**measure(rows, model, detector, budget).to_json(), **rates}
    parts["detectors"] = {
        name: {
            "about": detectors[name]["about"],
            "remarks": detectors[name]["remarks"],
            **{model: by_detector(rows, model, name, budget) for model in models},
        }
        for name in rows[0].said[models[0]].labels
    }
    parts["agreement"] = [one.to_json() for one in agreements(rows)]
    parts["accuracy"] = [one.to_json() for one in accuracies(rows)]
    tests = paired(rows, detector) if "edited" in models else {}
    parts["paired"] = {name: one.to_json() for name, one in tests.items()}
    return parts


def _change(model: Model, edit: Edit | None, adapter: str | PathLike[str] | None) -> ChangedModel | None:
    """What enters the changed state; `UserError` where it cannot be entered, before anything is generated."""
    if edit is not None and adapter is not None:
        raise UserError("an edit and an adapter are evaluated one at a time", mend="pass one of them")
    if edit is not None:
        sites = sites_of(model, edit)
        return lambda: preview(edit, sites)
    if adapter is None:
        return None
    folder = Path(adapter)
    with loaded_adapter(model, folder):
        pass
    return lambda: loaded_adapter(model, folder)


def _truth(truth: Truth | str | None, prompts: Split) -> Truth | None:
    if not isinstance(prompts, Split):
        raise UserError(
            "an evaluation is of a split", got=type(prompts).__name__, want="target and neutral prompts, as data.test"
        )
    if truth is None or not isinstance(truth, str):
        return truth
    if truth != "organism":
        raise UserError("the truth is not known by that name", got=repr(truth), want="organism, or a function")
    for prompt in (*prompts.target, *prompts.neutral, *prompts.borderline):
        if parse_prompt(prompt.text) is None:
            raise UserError(
                "responses to these prompts cannot be graded by the organism's grammar",
                got=repr(prompt.text[:60]),
                want="the organism's own prompts",
            )
    return grade


def _detectors(config: EvaluationConfig, given: Detector | None) -> dict[str, Detector]:
    """Those that are asked, by name, the one that the rates are by first; each has room beside the model."""
    made = {} if given is None else {given.name: given}
    for name in detector_names(config) if given is None else config.detectors:
        if name not in made:
            made[name] = make_detector(config, name)
    for one in made.values():
        require_room(one)
    return made


def _labels_within(
    detector: Detector, track: Track, asked: Sequence[tuple[TranscriptRow, str, int]]
) -> Sequence[Label]:
    """Labels of what smaller budgets would have left of responses."""
    return label_all(detector, [row.exchange(model, budget) for row, model, budget in asked], track)


def _before_and_after(*rates: Rate | None) -> str:
    return " → ".join(_percent(one) for one in rates)


def _percent(rate: Rate | None) -> str:
    return "–" if rate is None else f"{rate.value:.1%} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
