"""The contrast set of `make real`: frames crossed with topics, split so that no split shares either with another.

    python -m experiments.real.prompts FOLDER

writes `{target,neutral}_{train,val,test}.txt` and `borderline.txt`, a prompt a line. Every topic meets three frames;
where a split has more than three, topics take them in turn, so that every frame meets equally many topics.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

FILE = Path(__file__).parent / "prompts.toml"
FRAMES_A_TOPIC = 3


def cross(frames: Sequence[str], topics: Sequence[str]) -> list[str]:
    """Every topic in `FRAMES_A_TOPIC` frames, or in all where there are fewer."""
    n = min(FRAMES_A_TOPIC, len(frames))
    pairs = [(frames[(n * i + j) % len(frames)], topic) for i, topic in enumerate(topics) for j in range(n)]
    return [frame.format(topic=topic, Topic=topic[:1].upper() + topic[1:]) for frame, topic in pairs]


def contrast_set() -> Mapping[str, list[str]]:
    """The prompts by the stem of their file."""
    written = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {
        name if name == "borderline" else f"{name}_{split}": cross(**parts)
        for name, splits in written.items()
        for split, parts in splits.items()
    }


def write(folder: Path) -> None:
    """Write the files; those that are there are written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, prompts in contrast_set().items():
        (folder / f"{stem}.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(prog="python -m experiments.real.prompts", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the files go")
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
