"""`iconoclast-tl collect`: activations of the contrast set."""

from __future__ import annotations

from iconoclast_tl.cli.options import Common, with_common

NAME = "collect"


@with_common
def command(common: Common) -> None:
    """Collect resid_pre at all L+1 residual points, at each prompt's last token, into the run folder.

    Examples:

    `iconoclast-tl collect --out runs/first`

    `iconoclast-tl collect --model owner/name --target owner/prompts@train[:400]#text --neutral neutral.jsonl#prompt`
    """
    from iconoclast_tl.cli.console import show, workspace_of

    with workspace_of(common) as workspace:
        from iconoclast_tl.stages.collection import collected

        activations = collected(workspace)
        shapes = {
            "file": str(workspace.folder.activations),
            "points": activations.n_points,
            "d_model": activations.target_train.shape[-1],
            "splits": workspace.contrast.counts(),
        }
        show(common, shapes, f"{activations.n_points} residual points → {workspace.folder.activations}")
