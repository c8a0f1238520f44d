"""What a workspace asks of a selection: every candidate's scores on val prompts, and the one that a rule chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations, Residuals
from iconoclast_tl.directions.estimate import Estimated
from iconoclast_tl.directions.selection import Scored, Selection, prescreened, select
from iconoclast_tl.directions.separation import auroc, d_prime, projections
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.scores.candidates import CandidateScorer, Changes, least_alike
from iconoclast_tl.scores.first_tokens import first_log_probs, first_tokens
from iconoclast_tl.scores.odds import token_log_odds
from iconoclast_tl.workspace import Workspace

ByPosition = Mapping[int, Estimated]
"""What was estimated at every position."""


def selected(workspace: Workspace, activations: Activations, found: ByPosition) -> Selection:
    """Choose among the directions of every position and point by the rule of the settings."""
    selection, n_layers = workspace.settings.directions.selection, workspace.model.n_layers
    candidates = [one for position, at in found.items() for one in _unscored(position, at, activations.at(position))]
    base: dict[str, float] = {}
    if selection.rule != "separation":
        left = prescreened(candidates, selection, n_layers)
        rows, base = _scored(workspace, activations, found, left)
        scored = {(one.position, one.point): one for one in rows}
        candidates = [scored.get((one.position, one.point), one) for one in candidates]
    chosen = replace(select(candidates, selection, n_layers), base=base)
    if selection.rule != "separation" or len(found) > 1:
        workspace.say(f"{selection.rule} chose {chosen.chosen} of {len(candidates)} candidates")
    return chosen


def _unscored(position: int, estimated: Estimated, residuals: Residuals) -> list[Scored]:
    """The candidates of one position, with what activations alone say."""
    main = estimated.vectors[0]
    target, neutral = (projections(rows, main) for rows in (residuals.target_val, residuals.neutral_val))
    return [
        Scored(position, point, float(d_prime(b, g)), auroc(b, g))
        for point, (b, g) in enumerate(zip(target.T, neutral.T, strict=True))
        if bool(main[point].any())
    ]


def _scored(
    workspace: Workspace, activations: Activations, found: ByPosition, left: list[Scored]
) -> tuple[list[Scored], dict[str, float]]:
    """The same with what the model says under each, and the unedited model's log-odds."""
    if not left:
        return [], {}
    config = workspace.settings.directions.selection
    base = workspace.asked("val", config.prompts)
    tokens = behaviour_tokens(workspace)
    # No rule needs more than the first token: nothing is generated.
    target, neutral = (first_log_probs(workspace.model, base.suite[s], base.config.rows) for s in ("target", "neutral"))
    target_val, neutral_val = activations.at().target_val, activations.at().neutral_val
    means = [
        rows[: len(base.suite[side].rows)].double().mean(0)
        for side, rows in (("target", target_val), ("neutral", neutral_val))
    ]
    points = least_alike(means[0], means[1], config.lowest)
    scorer = CandidateScorer(
        workspace.model, workspace.sites, workspace.gains, base.suite["target"].rows, base.suite["neutral"].rows,
        tokens, neutral, points, base.config.rows, workspace.track,
    )  # fmt: skip
    changes = _changes(left, activations, found)
    scores = scorer.score(changes, means[0][points].float(), means[1][points].float())
    names = ("bypass", "induce", "kl", "to_neutral", "to_target")
    rows = zip(*(getattr(scores, name).tolist() for name in names), strict=True)
    asked = [replace(one, **dict(zip(names, row, strict=True))) for one, row in zip(left, rows, strict=True)]
    sides = {"bypass": target, "induce": neutral} if len(tokens) else {}
    return asked, {name: float(token_log_odds(log_probs, tokens).mean()) for name, log_probs in sides.items()}


def _changes(left: list[Scored], activations: Activations, found: ByPosition) -> Changes:
    vectors = torch.stack([_padded(found[one.position].vectors[:, one.point], found) for one in left])
    strengths = torch.stack([_padded(found[one.position].weights[:, one.point], found) for one in left])
    gaps = [
        float(vectors[number, 0].double() @ _gap(activations.at(one.position), one.point))
        for number, one in enumerate(left)
    ]
    return Changes(vectors, strengths, torch.tensor([one.point for one in left]), torch.tensor(gaps))


def _padded(values: Float[Tensor, "k *d_model"], found: ByPosition) -> Float[Tensor, "most *d_model"]:
    most = max(len(estimated.vectors) for estimated in found.values())
    return torch.cat([values, values.new_zeros(most - len(values), *values.shape[1:])])


def _gap(residuals: Residuals, point: int) -> Float[Tensor, "d_model"]:
    """μ_B − μ_G: by the mean of it along a direction, an addition brings neutral prompts to where target ones are."""
    gap: Tensor = residuals.target_train[:, point].double().mean(0) - residuals.neutral_train[:, point].double().mean(0)
    return gap


def behaviour_tokens(workspace: Workspace) -> Tensor:
    """First tokens of the behaviour; `UserError` where there are none and the rule goes by them."""
    gradient = workspace.settings.search.gradient
    tokens = first_tokens(workspace.asked("train", gradient.prompts), gradient.tokens)
    if not len(tokens.ids) and workspace.settings.directions.selection.rule == "arditi":
        raise UserError(
            "no first token is likelier on target prompts than on neutral ones",
            mend="name them in search.gradient.tokens, or select by another rule",
        )
    return tokens.ids
