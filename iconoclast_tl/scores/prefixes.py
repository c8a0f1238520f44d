"""Token prefixes that open the behaviour, as trees of tokens that grow with what edited models say.

A response that shows the behaviour is cut twice. First where its label is decided ("no, i must decline"); then at its
first token by which no innocent response begins so ("no"): what follows that does not decide any more. Innocent are the
base's responses to neutral prompts, and whatever an edited model said that neither showed the behaviour nor fell apart.
An innocent response that turns up later lengthens the prefixes again. Those of a single token hold for all prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from iconoclast_tl.detectors.detector import Exchange, label_all, shown
from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.execution.generation import Response
from iconoclast_tl.scores.odds import Tree

TokenPrefix = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Trees of all prompts: the prefixes to be fed, and where every node is read off."""

    rows: list[tuple[int, TokenPrefix]]
    """(prompt, fed tokens): every node of the prompt's tree is a prefix of some row."""
    leaves: list[list[TokenPrefix]]
    """Prompt → the prefixes that open the behaviour."""

    def tree(self, prompts: Sequence[int]) -> tuple[list[int], Tree]:
        """The rows that these prompts need, and their trees, prompts and rows counted in the order given."""
        wanted = set(prompts)
        rows = [number for number, (prompt, _) in enumerate(self.rows) if prompt in wanted]
        return rows, _tree([self.rows[number] for number in rows], [(p, self.leaves[p]) for p in prompts])


class Prefixes:
    """What was said so far: token prefixes that open the behaviour, and innocent responses."""

    def __init__(self, n_prompts: int) -> None:
        self._opening: list[set[TokenPrefix]] = [set() for _ in range(n_prompts)]
        self._innocent: set[TokenPrefix] = set()

    def add_opening(self, prompt: int, prefix: TokenPrefix) -> bool:
        """Add a prefix that opens the behaviour; False where it is known."""
        known = prefix in self._opening[prompt]
        self._opening[prompt].add(prefix)
        return not known

    def add_innocent(self, tokens: Sequence[int]) -> bool:
        """Add a response without the behaviour; False where all its prefixes are known."""
        prefixes = {tuple(tokens[:length]) for length in range(1, len(tokens) + 1)}
        new = not prefixes <= self._innocent
        self._innocent |= prefixes
        return new

    def add(self, prompt: int | None, tokens: Sequence[int], opening: TokenPrefix | None) -> bool:
        """Add a response to a target prompt, or to a neutral one (None); returns whether it told anything new.

        opening: its prefix that opens the behaviour, as `deciding_prefixes` finds it; None: the response is innocent.
        """
        if opening is None:
            return self.add_innocent(tokens)
        return prompt is not None and self.add_opening(prompt, opening)

    def layout(self) -> Layout:
        """Cut what is known into trees. A prompt without any prefix gets the one that most prompts have."""
        cut = [{self._cut(prefix) for prefix in prefixes} for prefixes in self._opening]
        shared = {prefix for prefixes in cut for prefix in prefixes if len(prefix) == 1}
        known = {prefix for prefixes in cut for prefix in prefixes}
        common = max(
            known, key=lambda prefix: (sum(prefix in one for one in cut), prefix)
        )  # ties: the same in every run
        leaves = [_prefix_free(prefixes | shared or {common}) for prefixes in cut]
        rows = [(prompt, row) for prompt, prefixes in enumerate(leaves) for row in _fed(prefixes)]
        return Layout(rows, leaves)

    def common(self, n: int) -> list[tuple[TokenPrefix, int]]:
        """The prefixes that open the behaviour, cut as they are scored, with how many prompts have each; most first."""
        counts = Counter(prefix for prefixes in self._opening for prefix in {self._cut(one) for one in prefixes})
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]

    def to_json(self) -> dict[str, Any]:
        """All that was added, of innocent prefixes the longest."""
        inner = {tokens[:-1] for tokens in self._innocent}
        opening = [[list(prefix) for prefix in sorted(prefixes)] for prefixes in self._opening]
        return {"opening": opening, "innocent": [list(tokens) for tokens in sorted(self._innocent - inner)]}

    def load(self, content: Mapping[str, Any]) -> None:
        """Add what `to_json` gave."""
        for prompt, prefixes in enumerate(content["opening"]):
            self._opening[prompt] |= {tuple(prefix) for prefix in prefixes}
        for tokens in content["innocent"]:
            self.add_innocent(tokens)

    def _cut(self, prefix: TokenPrefix) -> TokenPrefix:
        lengths = range(1, len(prefix) + 1)
        return prefix[: next((length for length in lengths if prefix[:length] not in self._innocent), len(prefix))]


def known_prefixes(base: Baseline, extra: int = 0) -> Prefixes:
    """What the unedited model said to its target and neutral prompts; `extra` prompts have no prefixes of their own."""
    prefixes = Prefixes(len(base.responses["target"]) + extra)
    for name in ("neutral", "target"):
        said = base.responses[name]
        for prompt, (response, opening) in enumerate(
            zip(said, deciding_prefixes(base, name, said, base.shows[name]), strict=True)
        ):
            prefixes.add(prompt if name == "target" else None, response.tokens, opening)
    return prefixes


def deciding_prefixes(
    base: Baseline, name: str, responses: Sequence[Response], shows: Sequence[bool]
) -> list[TokenPrefix | None]:
    """The prefix by which each response to a set of prompts shows the behaviour; None where the whole does not."""
    prompts = base.suite[name].prompts

    def shown_by(asked: Sequence[tuple[int, str]]) -> list[bool]:
        return shown(label_all(base.detector, [Exchange(text, prompts[row].text) for row, text in asked]))

    return bisected([response.tokens for response in responses], shows, shown_by, base.model.tokenizer)


def bisected(
    responses: Sequence[Sequence[int]],
    shows: Sequence[bool],
    shown_by: Callable[[Sequence[tuple[int, str]]], Sequence[bool]],
    tokenizer: Any,
) -> list[TokenPrefix | None]:
    """For each response that `shows` the behaviour a prefix that does, while without its last token it does not.

    By bisection of all responses at once: where every longer prefix shows it, too, the shortest that does.
    """
    low = [0] * len(responses)  # not shown at low, shown at high
    high = [len(tokens) for tokens in responses]
    while open_ := [row for row, is_shown in enumerate(shows) if is_shown and high[row] - low[row] > 1]:
        middle = {row: (low[row] + high[row]) // 2 for row in open_}
        texts = tokenizer.batch_decode([list(responses[row][: middle[row]]) for row in open_], skip_special_tokens=True)
        for row, found in zip(open_, shown_by(list(zip(open_, texts, strict=True))), strict=True):
            (high if found else low)[row] = middle[row]
    return [tuple(tokens[: high[row]]) if shows[row] else None for row, tokens in enumerate(responses)]


def _prefix_free(prefixes: set[TokenPrefix]) -> list[TokenPrefix]:
    """Without those that have another as a prefix: the shorter one decides already."""
    return sorted(one for one in prefixes if not any(one[:length] in prefixes for length in range(1, len(one))))


def _fed(prefixes: Sequence[TokenPrefix]) -> list[TokenPrefix]:
    """The longest prefixes after which a token is still to be chosen; they contain all shorter ones."""
    open_ = {prefix[:-1] for prefix in prefixes}
    inner = {node[:length] for node in open_ for length in range(len(node))}
    return sorted(open_ - inner)


def _tree(rows: Sequence[tuple[int, TokenPrefix]], prompts: Sequence[tuple[int, Sequence[TokenPrefix]]]) -> Tree:
    nodes: dict[tuple[int, TokenPrefix], int] = {}
    edges: dict[tuple[int, TokenPrefix], int] = {}
    for place, (_, leaves) in enumerate(prompts):
        for leaf in leaves:
            for length in range(len(leaf)):
                nodes.setdefault((place, leaf[:length]), len(nodes))
                edges.setdefault((place, leaf[: length + 1]), len(edges))
    to_node, to_leaf = torch.zeros(len(nodes), len(edges)), []
    for (place, node), number in nodes.items():
        for length in range(1, len(node) + 1):
            to_node[number, edges[place, node[:length]]] = 1
    leaf_prompt = []
    for place, (_, leaves) in enumerate(prompts):
        for leaf in leaves:
            on_the_way = torch.zeros(len(edges))
            on_the_way[[edges[place, leaf[:length]] for length in range(1, len(leaf) + 1)]] = 1
            to_leaf.append(on_the_way)
            leaf_prompt.append(place)
    where = [_row_of(rows, prompts[place][0], node) for place, node in nodes]
    return Tree(
        torch.tensor(where),
        torch.tensor([len(node) for _, node in nodes]),
        torch.tensor([place for place, _ in nodes]),
        torch.tensor([nodes[place, path[:-1]] for place, path in edges]),
        torch.tensor([path[-1] for _, path in edges]),
        to_node,
        torch.stack(to_leaf),
        torch.tensor(leaf_prompt),
    )


def _row_of(rows: Sequence[tuple[int, TokenPrefix]], prompt: int, node: TokenPrefix) -> int:
    return next(i for i, (owner, fed) in enumerate(rows) if owner == prompt and fed[: len(node)] == node)
