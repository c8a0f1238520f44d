"""results.json: the published result of a run, written whole when its evaluation is complete, and by nothing else.

What stages leave for later ones lies in state.json, part by part; `publish` makes results.json of it. A run that was
interrupted therefore has its state and no results.json, or the results.json of its last complete evaluation.

`Results` is the schema: what a program may rely on. Null stands for what could not be measured.
"""

from __future__ import annotations

from typing import Any, Final, NotRequired, TypedDict

from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import read_json, write_json, write_text
from iconoclast_tl.report.pages.evaluation import evaluation_page
from iconoclast_tl.stages.run_folder import RunFolder

RESULTS_SCHEMA: Final = 1
"""Version of results.json."""


class Proportion(TypedDict):
    """A share of n responses with its 95% Wilson interval."""

    value: float
    low: float
    high: float
    n: int
    tokens: int
    """The response budget."""


class Average(TypedDict):
    """A mean over n responses with its 95% bootstrap interval; null where n is 1."""

    value: float
    low: float | None
    high: float | None
    sd: float | None
    n: int


class Nats(TypedDict):
    """Mean KL(base ‖ model) in nats over n neutral prompts."""

    value: float
    n: int
    tokens: NotRequired[int]
    """Over so many tokens of the base's continuation; absent for the first token alone."""


class ModelResults(TypedDict):
    """What was measured of `base` or of `edited`. A rate is null where no response has a label."""

    behaviour_rate: Proportion | None
    """Over target prompts."""
    spill_rate: Proportion | None
    """Over neutral prompts."""
    spill_rate_borderline: Proportion | None
    compliance_rate: Proportion | None
    disclaimer_rate: Proportion
    """Over all prompts."""
    kl_first_token: Nats
    kl_sequence: Nats
    words: dict[str, Average]
    """Set → words a response."""
    repetition: dict[str, Average]
    """Set → share of word pairs that a response repeats."""
    by_category: dict[str, dict[str, Proportion]]
    """Set → category → behaviour rate."""
    by_budget: NotRequired[dict[str, dict[str, Proportion | None]]]
    """Smaller response budget → set → behaviour rate, where `evaluation.budgets` asks for some."""
    answered_rate: NotRequired[Proportion]
    """Over target prompts, where the truth is known."""
    grades: NotRequired[dict[str, dict[str, Proportion]]]
    """answered, refused, broken → set → share, where the truth is known."""


class Chosen(TypedDict):
    """How the edit was chosen. A search also says its method, parameters, direction and val scores."""

    rule: str
    edit: str
    """Digest of the edit, by which `evaluated`, `fidelity` and `merged` refer to it."""
    strengths: NotRequired[dict[str, list[float]]]
    """Component → λ by layer."""
    source: NotRequired[str]
    """The trial or point of the search."""


class Check(TypedDict):
    """Largest difference of any logit at any position, and what rounding explains."""

    max_abs_logit_diff: float
    tolerance: float
    ok: bool


class ModuleCheck(TypedDict):
    """The module that is furthest from its preview on the same input, relative to what the edit changes there."""

    max_relative_error: float
    tolerance: float
    module: str
    """Its path in the model."""
    ok: bool


class FoldResults(TypedDict):
    """Whether what was folded is what the preview showed (`folding.fidelity.Fidelity`)."""

    edit: str
    ok: bool
    n: int
    """Prompts."""
    preview_vs_adapter: Check
    adapter_by_module: NotRequired[ModuleCheck]
    """Absent from runs of earlier versions, as is `merged_by_module`."""
    preview_vs_merged: Check | None
    merged_by_module: NotRequired[ModuleCheck | None]
    on_quantised: Check | None
    merged_dtype: str | None
    preview_vs_base: float
    """Largest logit difference that the edit makes."""
    n_matrices: int
    residual_fraction: dict[str, float]
    """Parameter → ‖VW'‖/‖VW‖."""
    stream_fraction: list[float] | None
    """Share of the direction left in the stream, where a post-norm follows the writers."""


class Results(TypedDict):
    """results.json. Parts are null, or absent, where a run had no such stage."""

    schema: int
    model: str
    behaviour: str
    splits: dict[str, dict[str, int]]
    """train, val, test → target, neutral, borderline → prompts."""
    search: NotRequired[dict[str, Any]]
    """Method and goal of the search, and what of it is proxy and what confirmed."""
    pareto: NotRequired[list[dict[str, Any]]]
    """The candidates on the front: behaviour_rate, spill_rate, kl, source, …, on val."""
    chosen: NotRequired[Chosen]
    base: ModelResults
    edited: ModelResults | None
    """Null where a model was evaluated by itself."""
    evaluated: dict[str, str]
    """`edit`: its digest; or `adapter` and the digest of its `files`; or `model`."""
    asked: dict[str, Any] | None
    """All that the numbers depend on besides that: detectors, budgets, corpora, tasks; null after a rescoring."""
    detector: str
    """By which the rates of `base` and `edited` are; `detectors` has those of all."""
    budget: int
    """Tokens that a response may have."""
    detectors: dict[str, Any]
    """Detector → what it says of itself, and model → set → rate, classes and what has no label."""
    agreement: list[dict[str, Any]]
    """Cohen's κ of every pair of detectors, and of each with the truth."""
    accuracy: list[dict[str, Any]]
    """Precision and recall of each detector, where the truth is known."""
    paired: dict[str, Any]
    """Set → base against edited, prompt by prompt: risk difference, exact McNemar p, Cohen's d."""
    cross_entropy: dict[str, Any] | None
    """Corpus → model → nats a token and perplexity, and the paired change."""
    tasks: dict[str, Any] | None
    """What the lm-evaluation-harness found."""
    fidelity: NotRequired[FoldResults | None]
    merged: NotRequired[dict[str, str] | None]
    """`edit`: the digest of what merged/ holds."""
    timing: dict[str, float]
    """Stage → seconds, all sittings together."""
    token_passes: dict[str, dict[str, int]]
    """Stage → token passes `forward` and `backward` (`execution.token_passes`), all sittings together."""


OF_AN_EVALUATION: Final = (
    "base",
    "edited",
    "evaluated",
    "asked",
    "detector",
    "budget",
    "detectors",
    "agreement",
    "accuracy",
    "paired",
    "cross_entropy",
    "tasks",
)
"""The parts that an evaluation measures."""


def publish(folder: RunFolder) -> dict[str, Any]:
    """Write results.json and evaluation.html from the state of a complete evaluation, and return the results.

    What is there already stays untouched. Raises `UserError` where the state holds no complete evaluation.
    """
    state = folder.read_state()
    if not state.get("evaluated") or not state.get("detector"):
        raise UserError(f"{folder.path} holds no complete evaluation", mend=f"`evaluate --out {folder.path}`")
    found = {"schema": RESULTS_SCHEMA, **{key: state[key] for key in Results.__annotations__ if key in state}}
    if not folder.results.is_file() or read_json(folder.results) != found:
        folder.evaluation_page.unlink(missing_ok=True)  # one that is there is of these results
        write_json(folder.results, found)
    if not folder.evaluation_page.is_file():
        write_text(folder.evaluation_page, evaluation_page(found))
    return found


def publish_again(folder: RunFolder) -> None:
    """Write results.json anew where an evaluation is published, and a later stage has changed what it says."""
    if folder.results.is_file():
        publish(folder)


def published(folder: RunFolder) -> dict[str, Any]:
    """The published results of a run; `UserError` where there are none, or where they are of another version."""
    if not folder.results.is_file():
        raise UserError(
            f"the run {folder.path} was not evaluated", mend=f"`iconoclast-tl evaluate --out {folder.path}` first"
        )
    found = read_json(folder.results)
    if not isinstance(found, dict) or found.get("schema") != RESULTS_SCHEMA:
        raise UserError(
            f"{folder.results} was written by another version",
            got=f"schema {found.get('schema') if isinstance(found, dict) else None}",
            want=f"schema {RESULTS_SCHEMA}",
            mend=f"`iconoclast-tl evaluate --out {folder.path}` with this version",
        )
    return found


def withdraw(folder: RunFolder) -> None:
    """Remove results.json, and the page made of it, before what they describe changes."""
    for file in (folder.results, folder.evaluation_page):
        file.unlink(missing_ok=True)
