"""Choose one direction among those of every position and residual point.

`selection.rules` says how a candidate is chosen from its scores; here the scores are measured: d′ and AUROC from
activations, and for `arditi` and `cosmic` what the model does under each candidate (`selection.candidates`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from iconoclast_tl.activations.store import Activations, Residuals
from iconoclast_tl.directions.config import SelectionConfig, SelectionRule
from iconoclast_tl.directions.estimate import Estimated
from iconoclast_tl.directions.separation import auroc, d_prime, projections
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.scores.config import ScoreConfig
from iconoclast_tl.scores.first_tokens import first_log_probs, first_tokens
from iconoclast_tl.scores.odds import token_log_odds
from iconoclast_tl.selection.candidates import CandidateScorer, Changes, least_alike
from iconoclast_tl.selection.rules import DirectionCandidate, Selection, prescreened, select

ByPosition = Mapping[int, Estimated]
"""Position in the prompt → the directions that were estimated there."""
SCORES = ("bypass", "induce", "kl", "to_neutral", "to_target")


def choose(
    acts: Activations,
    found: ByPosition,
    config: SelectionConfig,
    base: Baseline | None = None,
    tokens: Int[Tensor, "t"] | None = None,
) -> Selection:
    """Choose among the main directions of every position and point by `config.rule`.

    base: the unedited model on val prompts. tokens: first tokens of the behaviour (`behaviour_tokens`). `arditi` and
    `cosmic` need both, `separation` neither. Raises `UserError` where they are missing, and where the rule removes
    every candidate.
    """
    n_layers = acts.n_points - 1
    candidates = [one for position, at in found.items() for one in unscored(position, at, acts.at(position))]
    unedited: dict[str, float] = {}
    if config.rule != "separation":
        if base is None or tokens is None:
            raise UserError(f"selection by {config.rule} runs the model", want="a baseline, and first tokens")
        left = prescreened(candidates, config, n_layers)
        rows, unedited = _scored(base, tokens, acts, found, left, config) if left else ([], {})
        scored = {(one.position, one.point): one for one in rows}
        candidates = [scored.get((one.position, one.point), one) for one in candidates]
    return replace(select(candidates, config, n_layers), base=unedited)


def behaviour_tokens(base: Baseline, scores: ScoreConfig, rule: SelectionRule) -> Int[Tensor, "t"]:
    """First tokens of the behaviour, from the first token of train prompts' responses, or those that `scores` names.

    Raises `UserError` where there are none and `arditi` would score by them.
    """
    tokens = first_tokens(base, scores.tokens)
    if not len(tokens.ids) and rule == "arditi":
        raise UserError(
            "no first token is likelier on target prompts than on neutral ones",
            mend="name them in scores.tokens, or select by another rule",
        )
    return tokens.ids


def unscored(position: int, estimated: Estimated, residuals: Residuals) -> list[DirectionCandidate]:
    """The candidates of one position with their d′ and AUROC on val prompts: what activations alone say."""
    main = estimated.vectors[0]
    target, neutral = (projections(rows, main) for rows in (residuals.target_val, residuals.neutral_val))
    return [
        DirectionCandidate(position=position, point=point, d_prime=float(d_prime(b, g)), auroc=auroc(b, g))
        for point, (b, g) in enumerate(zip(target.T, neutral.T, strict=True))
        if bool(main[point].any())
    ]


def _scored(
    base: Baseline,
    tokens: Int[Tensor, "t"],
    acts: Activations,
    found: ByPosition,
    left: Sequence[DirectionCandidate],
    config: SelectionConfig,
) -> tuple[list[DirectionCandidate], dict[str, float]]:
    """The candidates with what the model does under each, and the unedited model's log-odds."""
    model, target_rows, neutral_rows = base.model, base.suite["target"].rows, base.suite["neutral"].rows
    # No rule needs more than the first token: nothing is generated.
    target, neutral = (
        first_log_probs(model, base.suite[side], base.config.batch_rows) for side in ("target", "neutral")
    )
    residuals = acts.at()
    target_mean = residuals.target_val[: len(target_rows)].double().mean(0)
    neutral_mean = residuals.neutral_val[: len(neutral_rows)].double().mean(0)
    points = least_alike(target_mean, neutral_mean, config.lowest)
    scorer = CandidateScorer(
        model=model,
        target=target_rows,
        neutral=neutral_rows,
        tokens=tokens,
        base=neutral,
        points=points,
        batch_size=base.config.batch_rows,
        track=base.track,
    )
    scores = scorer.score(_changes(left, acts, found), target_mean[points].float(), neutral_mean[points].float())
    rows = zip(*(getattr(scores, name).tolist() for name in SCORES), strict=True)
    measured = [replace(one, **dict(zip(SCORES, row, strict=True))) for one, row in zip(left, rows, strict=True)]
    sides = {"bypass": target, "induce": neutral} if len(tokens) else {}
    return measured, {name: float(token_log_odds(log_probs, tokens).mean()) for name, log_probs in sides.items()}


def _changes(left: Sequence[DirectionCandidate], acts: Activations, found: ByPosition) -> Changes:
    """What is done for each candidate. An addition brings neutral prompts, in the mean, to where target prompts are."""
    vectors = torch.stack([_padded(found[one.position].vectors[:, one.point], found) for one in left])
    strengths = torch.stack([_padded(found[one.position].weights[:, one.point], found) for one in left])
    gaps = [
        float(vectors[number, 0].double() @ _mean_difference(acts.at(one.position), one.point))
        for number, one in enumerate(left)
    ]
    return Changes(vectors, strengths, torch.tensor([one.point for one in left]), torch.tensor(gaps))


def _padded(values: Float[Tensor, "k *d_model"], found: ByPosition) -> Float[Tensor, "most *d_model"]:
    """Zeros after the directions of a position that has fewer of them than another."""
    most = max(len(estimated.vectors) for estimated in found.values())
    return torch.cat([values, values.new_zeros(most - len(values), *values.shape[1:])])


def _mean_difference(residuals: Residuals, point: int) -> Float[Tensor, "d_model"]:
    """μ_B − μ_G of the train prompts, float64."""
    gap: Tensor = residuals.target_train[:, point].double().mean(0) - residuals.neutral_train[:, point].double().mean(0)
    return gap
