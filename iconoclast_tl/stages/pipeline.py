"""The whole run, top to bottom: collect → directions → preview → search → fold and verify → evaluate.

Every stage reads what earlier stages left in the run folder and computes what is missing, so each can be run alone,
and a run that was stopped goes on where it was. The search sees train and val; test is asked once, at the end.
"""

from __future__ import annotations

from typing import Any

from iconoclast_tl.folding.fold import require_experts_at_hand
from iconoclast_tl.stages.collection import collected
from iconoclast_tl.stages.directions import estimated
from iconoclast_tl.stages.evaluation import evaluated
from iconoclast_tl.stages.fold import folded
from iconoclast_tl.stages.preview import preview_default
from iconoclast_tl.stages.search import require_settings_foldable, searched
from iconoclast_tl.stages.workspace import Workspace


def run_all(workspace: Workspace) -> dict[str, Any]:
    """Run every stage in order; returns the contents of results.json."""
    require_settings_foldable(workspace)
    require_experts_at_hand(workspace.model.hf, {site.component for site in workspace.sites})
    activations = collected(workspace)
    directions = estimated(workspace, activations)
    preview_default(workspace, directions, activations)
    edit = searched(workspace, directions, activations)
    folded(workspace, edit)
    return evaluated(workspace, edit)
