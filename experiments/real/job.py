"""The main job on a real chat model, from fetching it to base beside edited: `make real`.

    python -m experiments.real.job --out runs/real [any options of iconoclast-tl run]

Run again, it continues or shows what is there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.real.model import NotFetchedError, ensure_model
from experiments.real.prompts import contrast_set, write

RECIPE = Path(__file__).parent / "recipe.toml"


def arguments(model: Path, prompts: Path, out: Path) -> list[str]:
    """Of `iconoclast-tl run`."""
    options = {
        "--target": "target_train",
        "--neutral": "neutral_train",
        "--target-val": "target_val",
        "--neutral-val": "neutral_val",
        "--target-test": "target_test",
        "--neutral-test": "neutral_test",
        "--borderline": "borderline",
    }
    sources = [part for option, stem in options.items() for part in (option, str(prompts / f"{stem}.txt"))]
    return ["run", "--recipe", str(RECIPE), "--model", str(model), *sources, "--out", str(out)]


def main() -> None:
    """Fetch, write the prompts, run: exit 0 done, 2 where the model cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real.job", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="the run folder (runs/real)")
    given, more = parser.parse_known_args()
    try:
        model = ensure_model()
    except NotFetchedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    prompts = given.out.parent / f"{given.out.name}-prompts"
    write(prompts)
    sizes = {stem: len(some) for stem, some in contrast_set().items()}
    print(", ".join(f"{n} {stem.replace('_', ' ')}" for stem, n in sizes.items()), file=sys.stderr)
    from iconoclast_tl.cli import main as iconoclast_tl

    sys.argv = ["iconoclast-tl", *arguments(model, prompts, given.out), *more]
    iconoclast_tl()


if __name__ == "__main__":
    main()
