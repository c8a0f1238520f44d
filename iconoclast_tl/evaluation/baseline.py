"""What the unedited model says: computed once, when it is first asked for, and compared with every edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from iconoclast_tl.detectors.detector import Detector, Label, label_all, shown
from iconoclast_tl.detectors.registry import search_detector
from iconoclast_tl.evaluation.metrics.divergence import BaseContinuations
from iconoclast_tl.evaluation.suite import EvaluationConfig, Questions, encode, respond
from iconoclast_tl.execution.batch_size import fitting
from iconoclast_tl.execution.generation import Response
from iconoclast_tl.execution.memory import free_bytes
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.progress import Track, silent
from iconoclast_tl.models.model import Model
from iconoclast_tl.prompts.contrast import SIDES, Split


@dataclass(frozen=True, eq=False)
class Baseline:
    """A model by itself on `target`, `neutral` and perhaps `borderline` prompts; it is asked without hooks."""

    model: Model
    suite: Mapping[str, Questions]
    config: EvaluationConfig
    detector: Detector
    """Says which responses show the behaviour."""
    track: Track = silent

    @cached_property
    def responses(self) -> dict[str, list[Response]]:
        """Its greedy responses to every set."""
        return respond(self.model, self.suite, self.config, self.track)

    @cached_property
    def labels(self) -> dict[str, list[Label]]:
        """What the detector makes of each."""
        return self.label(self.responses)

    def label(self, responses: Mapping[str, Sequence[Response]]) -> dict[str, list[Label]]:
        """What the detector makes of responses to every set, asked in one go."""
        asked = [one for name, said in responses.items() for one in self.suite[name].exchanges(said)]
        labels = iter(label_all(self.detector, asked, self.track))
        return {name: [next(labels) for _ in said] for name, said in responses.items()}

    @cached_property
    def shows(self) -> dict[str, list[bool]]:
        """Whether each response shows the behaviour."""
        return {name: shown(labels) for name, labels in self.labels.items()}

    @cached_property
    def continuations(self) -> BaseContinuations:
        """Its probabilities along its responses to the neutral prompts."""
        rows, config = self.suite["neutral"].rows, self.config
        said = [response.tokens for response in self.responses["neutral"]]
        return BaseContinuations(self.model, rows, said, config.kl_length, config.batch_rows)

    def require_shown(self, split: str) -> None:
        """Raise `UserError` where no target prompt calls up the behaviour: there is nothing to search for."""
        if not any(self.shows["target"]):
            raise UserError(
                "the model never shows the behaviour",
                got=f"0 of {len(self.shows['target'])} {split} target prompts, {self.config.max_new_tokens} tokens",
                want="target prompts that call it up",
                mend="check --target and what counts as the behaviour (evaluation.markers, evaluation.detector)",
            )


def baseline(
    model: Model,
    split: Split,
    config: EvaluationConfig | None = None,
    detector: Detector | None = None,
    at_most: int | None = None,
    track: Track = silent,
) -> Baseline:
    """The unedited model on the prompts of a split, such as `data.val`; it generates when it is first asked to.

    config: the response budget, the batch size (`auto` is measured here, with no hooks on) and what counts as the
    behaviour. detector: by default the one that `config` names, which labels every response, however unsure it is.
    at_most: the first so many target and neutral prompts; borderline prompts are all taken.

    Raises `UserError` for a split without target or neutral prompts, and for a prompt that does not fit the model's
    context together with `max_new_tokens`.
    """
    config = EvaluationConfig() if config is None else config
    prompts = {side: getattr(split, side)[:at_most] for side in SIDES}
    for side, some in prompts.items():
        if not some:
            raise UserError(f"there are no {side} prompts in this split", want="at least one")
    if split.borderline:
        prompts["borderline"] = split.borderline
    budget = config.max_new_tokens
    suite = {name: encode(some, model.chat, model.context_length, budget) for name, some in prompts.items()}
    if config.batch_size == "auto":
        longest = max(len(row) for questions in suite.values() for row in questions.rows) + budget
        rows = fitting(model, longest, config.kl_length, track).rows
        config = config.model_copy(update={"batch_size": rows})
    return Baseline(model, suite, config, search_detector(config) if detector is None else detector, track)


def require_room(detector: Detector) -> None:
    """Raise `UserError` where the detector's own model does not fit into the memory that is free."""
    needs = detector.footprint()
    if needs is not None and not needs.fits(free := free_bytes(needs.device)):
        raise UserError(
            f"{detector.name} does not fit into memory beside the model",
            got=f"{free / 1e9:.1f} GB free",
            want=f"room for {needs.n_bytes / 1e9:.1f} GB of weights and a batch",
            mend="leave evaluation.detector at markers, and ask it at the end: evaluation.detectors",
        )
