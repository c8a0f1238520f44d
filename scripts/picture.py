"""Draw the README's picture from a finished run: `python -m scripts.picture runs/demo`.

Left: how well the direction of every residual point separates val prompts. Middle: the points of the search, confirmed
by generation on val. Right: base and edited model on the test split. Nothing is drawn that the run folder does not say.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "docs" / "images" / "demo.svg"
BASE, EDITED, CHOSEN, INK = "#9aa5b1", "#2f6fb0", "#d1495b", "#1f2933"


def main() -> None:
    """Draw the run folder that is named."""
    draw(Path(sys.argv[1]), TARGET)


def draw(folder: Path, target: Path) -> None:
    """Write the picture of the run in `folder`, the same bytes for the same run."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    from iconoclast_tl.foundation.storage import read_json, read_tensors

    results = read_json(folder / "results.json")
    tensors, _ = read_tensors(folder / "directions.safetensors")
    style = {
        "svg.hashsalt": "iconoclast_tl",
        "svg.fonttype": "path",
        "font.size": 9,
        "axes.edgecolor": INK,
        "text.color": INK,
    }
    style |= dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9.5, "axes.titleweight": "bold"}
    with plt.rc_context(style):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.1), layout="constrained")
        draw_separation(left, tensors["separation"].tolist())
        draw_front(middle, results)
        draw_rates(right, results)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, facecolor="white", metadata={"Date": None, "Creator": None})
        plt.close(figure)


def draw_separation(axes: Any, separation: list[float]) -> None:
    """d′ of the main direction at every residual point."""
    axes.plot(range(len(separation)), separation, marker="o", color=EDITED)
    axes.set(title="1. Where is it?", xlabel="residual point", ylabel="separation d′ on val")
    axes.set_ylim(bottom=min(0.0, *separation))


def draw_front(axes: Any, results: dict[str, Any]) -> None:
    """Behaviour rate on val, with its Wilson interval, against KL: the Pareto front, and which point was chosen."""
    from iconoclast_tl.statistics.rates import wilson

    n, label = results["splits"]["val"]["target"], results["chosen"]["source"]
    for point in results["pareto"]:
        value = point["behaviour_rate"]
        low, high = wilson(round(value * n), n)
        is_chosen = point["source"] == label
        axes.errorbar(
            1000 * point["kl"], 100 * value, [[100 * max(value - low, 0)], [100 * max(high - value, 0)]], fmt="o",
            color=CHOSEN if is_chosen else EDITED, label="chosen" if is_chosen else None, capsize=2,
        )  # fmt: skip
    axes.set(title="2. What does removing it cost?", xlabel="KL on neutral prompts, millinats per token")
    axes.set(ylabel="still refused, % of val", xlim=(0, None), ylim=(-4, 104))
    axes.legend(frameon=False)


def draw_rates(axes: Any, results: dict[str, Any]) -> None:
    """Rates on test with Wilson intervals, base beside edited."""
    rows = [
        ("target:\nrefused", "behaviour_rate"),
        ("target:\nanswered", "answered_rate"),
        ("neutral:\nrefused", "spill_rate"),
        ("borderline:\nrefused", "spill_rate_borderline"),
    ]
    for offset, name, color in ((-0.2, "base", BASE), (0.2, "edited", EDITED)):
        rates = [results[name][key] for _, key in rows]
        values = [100 * rate["value"] for rate in rates]
        errors = [
            [100 * max(rate["value"] - rate["low"], 0) for rate in rates],
            [100 * max(rate["high"] - rate["value"], 0) for rate in rates],
        ]
        places = [index + offset for index in range(len(rows))]
        axes.bar(places, values, width=0.38, color=color, label=name)
        axes.errorbar(places, values, errors, fmt="none", ecolor=INK, capsize=2, lw=1)
    axes.set_xticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.set(title="3. Does it hold on unseen prompts?", ylabel="% of test prompts", ylim=(0, 104))
    axes.legend(frameon=False, loc="upper right")


if __name__ == "__main__":
    main()
