"""The model card of an adapter or of merged weights: how the model was edited, to what effect, and for what use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from iconoclast_tl.models.source import hub_id

Goal = Literal["suppress", "strengthen", "steer"]
"""What an edit is for: a search's goal, or neither of both, such as an addition that was previewed and kept."""
CHANGED: Mapping[Goal, str] = {
    "suppress": "was ablated from what its attention and MLP blocks write into the residual stream",
    "strengthen": "was amplified in what its attention and MLP blocks write into the residual stream",
    "steer": "was changed, or another one added, in what its blocks write into the residual stream, as the table says",
}
"""What was done to the direction, by the goal."""
WARNED: Mapping[Goal, str] = {
    "suppress": "Where the behaviour is a safeguard, this model lacks it: do not put it in front of users.",
    "strengthen": "This model shows the behaviour more than its makers meant it to: do not put it in front of users.",
    "steer": "This model does not behave as its makers meant it to: do not put it in front of users.",
}
"""What that means for its use."""


def model_card(
    kind: str,
    base: str,
    behaviour: str,
    goal: Goal,
    recipe: Mapping[str, Any],
    results: Mapping[str, Any] | None,
) -> str:
    """Markdown with the metadata block that the hub reads.

    kind: `adapter` or `merged`. behaviour: its name. goal: of the edit. recipe: how the edit was made, for the table.
    results: the contents of results.json, or None where nothing was measured yet, which the card then says.
    """
    header = ["---", f"base_model: {hub_id(base)}", "tags:", "- iconoclast_tl", "- interpretability", "- model-edit"]
    header += ["library_name: peft"] if kind == "adapter" else ["library_name: transformers"]
    what = "LoRA adapter" if kind == "adapter" else "set of merged weights"
    lines = [
        *header,
        "---",
        "",
        f"# An edited model: {behaviour}",
        "",
        f"This is a {what} that changes `{base}`: the direction along which it represents the behaviour *{behaviour}* "
        f"{CHANGED[goal]}. **It is not the original model and does not behave like it.**",
        "",
        "## How",
        "",
        "| | |",
        "|---|---|",
        *[f"| {name} | {_cell(value)} |" for name, value in recipe.items()],
        "",
        "## Measured effect",
        "",
        *_effect(results),
        "",
        "## Intended use",
        "",
        f"Research: understanding how behaviours are represented, auditing how fragile they are. {WARNED[goal]} "
        "The base model's licence terms hold.",
        "",
        "Made with iconoclast_tl.",
    ]
    return "\n".join(lines) + "\n"


def _effect(results: Mapping[str, Any] | None) -> list[str]:
    if results is None:
        return ["Not measured yet."]
    base, edited = results["base"], results["edited"]
    rows = [
        f"| {label} | {_rate(base.get(key))} | {_rate(edited.get(key))} |"
        for key, label in (
            ("behaviour_rate", "behaviour rate on target prompts"),
            ("spill_rate", "spill rate on neutral prompts"),
            ("spill_rate_borderline", "spill rate on borderline prompts"),
        )
        if base.get(key) or edited.get(key)
    ]
    kl = edited["kl_sequence"]
    return [
        "On a test split that neither the directions nor the search saw; 95% Wilson intervals.",
        "",
        "| | base | edited |",
        "|---|---|---|",
        *rows,
        f"| KL(base ‖ edited) at the first token, nats | 0 | {edited['kl_first_token']['value']:.4f} |",
        f"| KL(base ‖ edited) over {kl['tokens']} tokens, nats | 0 | {kl['value']:.4f} |",
        "",
        f"Responses had a budget of {edited['disclaimer_rate']['tokens']} tokens, greedy.",
    ]


def _rate(rate: Mapping[str, Any] | None) -> str:
    if rate is None:
        return "–"
    return f"{rate['value']:.1%} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}], n={rate['n']}"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
