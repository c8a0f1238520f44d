"""What a workspace asks of an attribution: edit, score and prompts put together, and the edit of its first heads."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from iconoclast_tl.activations.store import Activations
from iconoclast_tl.attribution.config import METHODS, NEED_AN_EDIT, MethodName, ScoreName
from iconoclast_tl.attribution.cumulative import HEADS
from iconoclast_tl.attribution.direct import Unembedding, unembedding
from iconoclast_tl.attribution.matching import matched
from iconoclast_tl.attribution.parts import Part, model_parts
from iconoclast_tl.attribution.study import Ask, Study, study
from iconoclast_tl.attribution.subject import make_subject
from iconoclast_tl.direction_job import estimate
from iconoclast_tl.directions.directions import Directions
from iconoclast_tl.directions.geometry import normalize
from iconoclast_tl.directions.separation import best_point
from iconoclast_tl.edits.edit import Edit
from iconoclast_tl.edits.store import save_edit
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.storage import write_json, write_text
from iconoclast_tl.models.hook_points import HookedModule, hf_sites
from iconoclast_tl.models.parts import neurons
from iconoclast_tl.models.reading import read_along
from iconoclast_tl.models.sites import Site
from iconoclast_tl.prepare import chosen_edit, collect, drop_of_other_edit, uniform_edit
from iconoclast_tl.prompts.chat import Tokens
from iconoclast_tl.report.attribution import AttributionReport
from iconoclast_tl.run_folder import RunFolder
from iconoclast_tl.scores.first_tokens import first_log_probs
from iconoclast_tl.scores.log_odds import LogOdds
from iconoclast_tl.scores.logit_difference import LogitDifference
from iconoclast_tl.scores.odds import rising_tokens
from iconoclast_tl.scores.paths import known_paths
from iconoclast_tl.scores.projection import Projection
from iconoclast_tl.scores.score import Score
from iconoclast_tl.workspace import Workspace


def attribute(
    workspace: Workspace, point: float | None = None, only: Collection[Part] | None = None, write: bool = True
) -> AttributionReport:
    """Attribute the behaviour to embedding, heads and MLPs, by `attribution.methods`.

    Under the run's chosen edit, or, where `point` is given or there is none, under λ = 1 everywhere along the direction
    of a residual point. only: parts to look at. write: attribution.json and attribution.html in the run folder.
    """
    config = workspace.settings.attribution
    activations = collect(workspace)
    directions = estimate(workspace, activations)
    edit, what, methods = _edit(workspace, directions, activations, point)
    vector, direction = _direction(edit, directions)
    if workspace.model.dtype not in ("float32", "float64"):
        workspace.say(f"warning: differences of scores are small beside the rounding of {workspace.model.dtype}")
    with workspace.timed("attribute"):
        base = workspace.asked("train", config.prompts)
        ask = _ask(workspace, base, edit, vector, activations)
        if only is not None:
            ask = replace(ask, only=frozenset(only))
        accumulated = {
            side: (residuals.double() @ vector.double()).mean(0)
            for side, residuals in (("target", activations.target_train), ("neutral", activations.neutral_train))
        }
        report = AttributionReport(study(ask, config, methods, what, direction, accumulated), config.top)
        if write:
            write_json(workspace.folder.attribution, report.to_json())
            write_text(workspace.folder.attribution_page, report.page())
    return report


def _direction(edit: Edit, directions: Directions) -> tuple[Float[Tensor, "d_model"], str]:
    """What is projected on: the edit's own direction where it has one for all layers, or the best separating one."""
    first = edit.directions[0, 0]
    if len(edit.directions) == 1 and bool(first.any()) and torch.allclose(edit.directions[0], first, atol=1e-6):
        return first, "the edit's direction"
    point = best_point(directions)
    return directions.at(point), f"the direction of point {point} (the edit has others in its layers)"


def _edit(
    workspace: Workspace, directions: Directions, activations: Activations, point: float | None
) -> tuple[Edit, str, Sequence[MethodName]]:
    """The edit, what to call it, and the methods that can be asked."""
    config = workspace.settings.attribution
    if point is None and workspace.folder.edit.is_file():
        return chosen_edit(workspace), "the run's chosen edit", config.methods
    at = float(best_point(directions)) if point is None else point
    edit = uniform_edit(workspace, directions, activations, at, 1.0, range(directions.n_layers))
    what = f"λ = 1 everywhere, direction of point {at:g}"
    needing = [method for method in config.methods if method in NEED_AN_EDIT]
    if point is not None or not needing:
        return edit, what, config.methods
    if config.methods != METHODS:
        raise UserError(
            f"{', '.join(needing)} {'needs' if len(needing) == 1 else 'need'} an edit",
            got=f"none in {workspace.folder.path}",
            mend="run `search` into this folder first, or name a direction by --point",
        )
    workspace.say(f"no edit in {workspace.folder.path}: {' and '.join(needing)} are left out")
    return edit, what, [method for method in config.methods if method not in needing]


def _ask(
    workspace: Workspace, base: Baseline, edit: Edit, direction: Float[Tensor, "d_model"], activations: Activations
) -> Ask:
    model, config = workspace.model, workspace.settings.attribution
    ground = workspace.ground(activations)
    rows, neutrals = base.suite["target"].rows, base.suite["neutral"].rows
    partners = [neutrals[number] for number in matched(rows, neutrals)]
    temperature = workspace.settings.search.gradient.temperature
    target, neutral, along = _scores(config.score, base, rows, partners, direction, temperature)
    return Ask(
        target,
        neutral,
        make_subject(edit, ground, model, workspace.sites),
        workspace.sites,
        workspace.gains,
        along,
        rows,
        partners,
        base.config.rows if config.batch_size == "auto" else config.batch_size,
        workspace.settings.search.gradient.batch_size,
        _all_that_writes(workspace),
        track=workspace.track,
        leave_out=workspace.say if config.methods == METHODS else None,
    )


def _all_that_writes(workspace: Workspace) -> dict[Site, HookedModule]:
    """Also what the settings leave alone, as far as it is known."""
    try:
        return hf_sites(workspace.model.hf)
    except UserError:
        return workspace.sites


def _scores(
    name: ScoreName,
    base: Baseline,
    rows: Sequence[Tokens],
    partners: Sequence[Tokens],
    direction: Float[Tensor, "d_model"],
    temperature: float,
) -> tuple[Score, Score, Tensor | Unembedding]:
    """The score of target prompts and of their neutral ones, and what direct attribution is along."""
    model = base.model
    if name == "projection":
        return Projection(model, rows, direction), Projection(model, partners, direction), direction
    if name == "log-odds":
        base.require_shown("train")
        layout = known_paths(base).layout()
        return LogOdds(model, rows, layout, temperature), LogOdds(model, partners, layout, temperature), direction
    after, before = (first_log_probs(model, base.suite[side], base.config.rows) for side in ("target", "neutral"))
    rising, falling = rising_tokens(after, before), rising_tokens(before, after)
    scores = [LogitDifference(model, some, rising, falling) for some in (rows, partners)]
    return scores[0], scores[1], unembedding(model, rising, falling)


def top_heads(workspace: Workspace, directions: Directions, k: int, method: MethodName, affine: bool) -> list[str]:
    """The first k heads by a method, as `layer.head`: along the best separating direction, before any search.

    affine: towards the neutral means, where the search may edit so.
    """
    settings = workspace.settings
    config = settings.attribution.model_copy(update={"methods": (method,), "cumulative": False})
    edit = settings.edit.model_copy(update={"affine": affine})
    asking = replace(workspace, settings=settings.model_copy(update={"attribution": config, "edit": edit}))
    require_ranking(asking, k, None)
    found = attribute(asking, float(best_point(directions)), write=False).study
    return [f"{part.layer}.{part.head}" for part in found.ranking(method).top(k, "head")]


def top_neurons(
    workspace: Workspace, activations: Activations, direction: Float[Tensor, "d_model"], k: int
) -> list[str]:
    """The k neurons that write most along a direction, target less neutral prompts, as `layer.neuron`.

    (vᵀW)_n · (mean of neuron n over target prompts − over neutral ones), from means that were collected: no pass.
    """
    there = neurons(workspace.model.hf)
    target, neutral = (reads.get("mlp_out") for reads in (activations.target_reads, activations.neutral_reads))
    if target is None or neutral is None or len(there) != workspace.model.n_layers:
        raise UserError(
            f"{type(workspace.model.hf).__name__} has no neurons that can be told apart", mend="pass --profile free"
        )
    ranked = []
    for layer, more in enumerate(target - neutral):
        gains = workspace.gains.get("mlp_out")
        seen = direction if gains is None else normalize(gains[layer] * direction)
        read = read_along(workspace.sites[Site(layer, "mlp_out")].module, seen[None]).weight[0]
        ranked += [(value, layer, neuron) for neuron, value in enumerate((read.double().cpu() * more).tolist())]
    if k > len(ranked):
        raise UserError("the model has fewer neurons", got=f"the first {k}", want=f"at most {len(ranked)}")
    return [f"{layer}.{neuron}" for _, layer, neuron in sorted(ranked, reverse=True)[:k]]


def require_ranking(
    workspace: Workspace, k: int | None, method: str | None, only: Collection[Part] | None = None
) -> None:
    """Raise `UserError`, before anything is computed, where the first k heads by this method cannot be told."""
    asked = workspace.settings.attribution.methods
    known = [*asked, *(["interchange-back"] if "interchange" in asked else [])]
    if method is not None and method not in known:
        raise UserError("heads cannot be ranked by a method that is not asked", got=method, want=", ".join(known))
    parts = model_parts(workspace.model.hf) if only is None else only
    n_heads = sum(part.component in HEADS for part in parts)
    if k is not None and k > n_heads:
        raise UserError("there are fewer heads", got=f"the first {k}", want=f"at most {n_heads}")


def top_heads_edit(workspace: Workspace, found: Study, k: int, method: str | None = None) -> RunFolder:
    """A run folder of its own with the edit that projects v out of the k heads that a method ranks first.

    It lies in the run's, as `top-k`, and `preview --chosen`, `fold`, `merge` and `evaluate` work on it. The directions
    are those of the study, λ = 1, affine where its edit is. What was made of another edit there goes.
    """
    ranked = found.ranking(method)
    chosen = ranked.top(k, *HEADS)
    made = found.subject.only(chosen)
    folder = RunFolder(workspace.folder.path / f"top-{k}")
    with folder.locked():
        for file in (workspace.folder.activations, workspace.folder.directions):
            shutil.copyfile(file, folder.path / file.name)
        manifest = dict(workspace.folder.read_manifest() or {})
        write_json(folder.manifest, {**manifest, "timing": {}})
        names = [str(part) for part in chosen]
        stale = drop_of_other_edit(folder, made)
        save_edit(folder.path, made, {"heads": names, "by": ranked.method, "along": found.edit})
        rule = {"rule": f"first {k} heads by {ranked.method}", "edit": made.digest(), "heads": names}
        folder.update_results(chosen=rule, **stale)
    return folder
