"""Log-odds of trees of tokens: exact against enumeration, alive where probabilities round to 1."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from iconoclast_tl.detectors.markers.markers import MarkerSet
from iconoclast_tl.directions.separation import auroc
from iconoclast_tl.scores.odds import grouped_logsumexp, rising_tokens, token_log_odds, tree_log_odds
from iconoclast_tl.scores.prefixes import Prefixes, TokenPrefix, bisected

VOCABULARY, LONGEST = 4, 3


def prefixes_of(opening: list[list[TokenPrefix]], innocent: list[TokenPrefix] = ()) -> Prefixes:  # type: ignore[assignment]
    prefixes = Prefixes(len(opening))
    for prompt, mine in enumerate(opening):
        for prefix in mine:
            prefixes.add_opening(prompt, prefix)
    for tokens in innocent:
        prefixes.add_innocent(tokens)
    return prefixes


def table(prompt: int, seed: int = 0, scale: float = 1.0) -> dict[TokenPrefix, torch.Tensor]:
    """Logits after every beginning."""
    generator = torch.Generator().manual_seed(seed * 100 + prompt)
    nodes = [node for length in range(LONGEST) for node in itertools.product(range(VOCABULARY), repeat=length)]
    return {node: torch.randn(VOCABULARY, generator=generator) * scale for node in nodes}


INNOCENT = [(0, 0, 0), (1, 2, 3), (2, 2, 2)]
OPENING = [[(0, 1, 3), (0, 2, 1), (3, 3)], [(1, 1), (1, 2, 0)], [(0, 0, 1)]]


def test_the_odds_are_those_of_enumerating_every_response() -> None:
    layout = prefixes_of(OPENING, INNOCENT).layout()
    rows, tree = layout.tree([2, 0])
    tables = [table(prompt) for prompt in range(3)]
    logits = torch.zeros(1, len(rows), LONGEST, VOCABULARY)
    for place, row in enumerate(rows):
        prompt, fed = layout.rows[row]
        for depth in range(len(fed) + 1):
            logits[0, place, depth] = tables[prompt][fed[:depth]]
    found = tree_log_odds(logits[:, tree.row, tree.depth], tree, 2)[0]
    for place, prompt in enumerate([2, 0]):
        inside = 0.0
        for response in itertools.product(range(VOCABULARY), repeat=LONGEST):
            probability = math.prod(
                float(tables[prompt][response[:t]].softmax(-1)[response[t]]) for t in range(LONGEST)
            )
            inside += probability * any(response[: len(leaf)] == leaf for leaf in layout.leaves[prompt])
        assert float(found[place]) == pytest.approx(math.log(inside / (1 - inside)), abs=1e-4)


def test_a_saturated_base_still_has_a_gradient() -> None:
    _, tree = prefixes_of([[(1,)]]).layout().tree([0])
    logits = torch.tensor([[[[0.0, 60.0, 0.0, 0.0]]]], requires_grad=True)
    odds = tree_log_odds(logits[:, tree.row, tree.depth], tree, 1)
    odds.sum().backward()
    assert float(odds) == pytest.approx(60 - math.log(3), rel=1e-6)
    assert logits.grad is not None
    assert float(logits.grad[0, 0, 0, 1]) == pytest.approx(1, rel=1e-6)
    # What a logit of a clamped probability gives there: nothing.
    crude = logits.detach().clone().requires_grad_()
    p = crude.softmax(-1)[..., 1].clamp(1e-6, 1 - 1e-6)
    (p.log() - (1 - p).log()).sum().backward()
    assert crude.grad is not None
    assert float(crude.grad.abs().max()) == 0


def test_a_group_without_items_has_no_mass() -> None:
    values = torch.tensor([[0.0, 1.0, 2.0]])
    found = grouped_logsumexp(values, torch.tensor([0, 0, 2]), 3)
    assert torch.allclose(found, torch.tensor([[math.log(1 + math.e), -math.inf, 2.0]]))


def test_first_token_odds_and_the_tokens_that_rise() -> None:
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([2, 7])
    p = logits.double().softmax(-1)[:, tokens].sum(-1)
    assert torch.allclose(token_log_odds(logits, tokens).double(), (p / (1 - p)).log(), atol=1e-5)
    neutral = torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()
    target = torch.tensor([[0.1, 0.2, 0.6, 0.1]]).log()
    assert rising_tokens(target, neutral).tolist() == [2, 1]
    assert rising_tokens(neutral, neutral).tolist() == []


def test_auroc_counts_pairs_and_halves_ties() -> None:
    target, neutral = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([0.0, 2.0, 3.0])
    pairs = [(t > n) + 0.5 * (t == n) for t in target.tolist() for n in neutral.tolist()]
    assert auroc(target, neutral) == pytest.approx(sum(pairs) / len(pairs))


def test_a_way_is_cut_where_no_innocent_response_follows_it() -> None:
    assert prefixes_of([[(5, 6, 7)]]).layout().leaves == [[(5,)]]
    prefixes = prefixes_of([[(5, 6, 7)]], [(5, 8)])
    assert prefixes.layout().leaves == [[(5, 6)]]
    assert prefixes.add_innocent((5, 6, 9))  # a later innocent response lengthens it
    assert prefixes.layout().leaves == [[(5, 6, 7)]]
    assert not prefixes.add_innocent((5, 6))  # known by now


def test_single_tokens_hold_for_all_prompts_and_a_prompt_without_any_gets_the_commonest() -> None:
    assert prefixes_of([[(5, 1)], [(6, 1)], []]).layout().leaves == [[(5,), (6,)]] * 3
    longer = prefixes_of([[(5, 1)], [(5, 1)], []], [(5, 2)]).layout()
    assert longer.leaves == [[(5, 1)]] * 3


def test_paths_are_prefix_free_and_every_node_is_read_from_a_row_that_begins_so() -> None:
    layout = prefixes_of(OPENING, INNOCENT).layout()
    for leaves in layout.leaves:
        assert not [(a, b) for a in leaves for b in leaves if a != b and b[: len(a)] == a]
    rows, tree = layout.tree([0, 1, 2])
    for row, depth, prompt in zip(tree.row.tolist(), tree.depth.tolist(), tree.prompt.tolist(), strict=True):
        owner, fed = layout.rows[rows[row]]
        assert owner == prompt
        assert depth <= len(fed)


class Words:
    """A tokenizer of numbers; 0 is special."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return " ".join(f"w{token}" for token in tokens if token or not skip_special_tokens)

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [self.decode(tokens, skip_special_tokens) for tokens in rows]


def deciding(responses: list[list[int]], behaviour: MarkerSet) -> list[TokenPrefix | None]:
    """The beginnings by which responses show a marker."""

    def shown_by(asked: Sequence[tuple[int, str]]) -> list[bool]:
        return [behaviour.found_in(text) for _, text in asked]

    texts = Words().batch_decode(responses, True)
    return bisected(responses, [behaviour.found_in(text) for text in texts], shown_by, Words())


def test_bisection_finds_what_a_scan_finds() -> None:
    behaviour = MarkerSet(name="test", match="anywhere", phrases=("w3 w1",))
    generator = torch.Generator().manual_seed(0)
    found, asked = set(), list[tuple[list[int], int | None]]()
    for _ in range(60):
        tokens = torch.randint(1, 5, (9,), generator=generator).tolist()
        scan = next((t for t in range(1, 10) if behaviour.found_in(Words().decode(tokens[:t], True))), None)
        asked.append((tokens, scan))
        found.add(scan)
    prefixes = deciding([tokens for tokens, _ in asked], behaviour)
    assert prefixes == [None if scan is None else tuple(tokens[:scan]) for tokens, scan in asked]
    assert len(found) > 4


def test_every_candidate_has_its_own_odds_however_extreme() -> None:
    _, tree = prefixes_of(OPENING, INNOCENT).layout().tree([0, 1, 2])
    generator = torch.Generator().manual_seed(1)
    mild = torch.randn(1, len(tree.row), VOCABULARY, generator=generator)
    found = tree_log_odds(torch.cat([mild, -mild, 300 * mild]), tree, 3)
    exact = [tree_log_odds(factor * mild.double(), tree, 3)[0] for factor in (1, -1, 300)]
    assert torch.allclose(found.double(), torch.stack(exact), rtol=1e-4)
    assert bool(found.isfinite().all())
    assert float(found[2].abs().max()) > 110  # a plain sum of exponentials has no float for this
    assert not torch.allclose(found[0], found[1])


def test_tokens_rise_in_mean_probability_by_enough_and_not_too_many_of_them() -> None:
    neutral = torch.full((1, 4), 0.25).log()
    target = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.01, 0.95, 0.03, 0.01]]).log()  # no token rises in both
    assert rising_tokens(target, neutral).tolist() == [0, 1]
    assert rising_tokens(target, neutral, at_most=1).tolist() == [0]
    slight = torch.tensor([[0.245, 0.245, 0.255, 0.255]]).log()
    assert rising_tokens(slight, neutral).tolist() == []
    assert sorted(rising_tokens(slight, neutral, least=0.001).tolist()) == [2, 3]


def test_a_way_is_news_once_for_each_prompt() -> None:
    prefixes = Prefixes(2)
    assert [prefixes.add_opening(prompt, (5, 6)) for prompt in (1, 1, 0)] == [True, False, True]


def test_longer_paths_stay_with_their_prompts_and_the_commonest_stands_in() -> None:
    opening: list[list[TokenPrefix]] = [[(5, 1)], [(5, 1), (6, 1)], []]
    assert prefixes_of(opening, [(5, 2), (6, 2)]).layout().leaves == [[(5, 1)], [(5, 1), (6, 1)], [(5, 1)]]
    rarer: list[list[TokenPrefix]] = [[(6, 1)], [(5, 1), (6, 1)], []]
    assert prefixes_of(rarer, [(5, 2), (6, 2)]).layout().leaves[2] == [(6, 1)]  # not the first by order, either


def test_a_way_that_begins_an_innocent_response_stays_whole_and_ends_longer_ones() -> None:
    assert prefixes_of([[(5, 6)]], [(5, 6, 7)]).layout().leaves == [[(5, 6)]]
    assert prefixes_of([[(5, 6), (5, 6, 8)]], [(5, 6, 7)]).layout().leaves == [[(5, 6)]]
    assert prefixes_of([[(5, 6, 8)]], [(5, 6, 7)]).layout().leaves == [[(5, 6, 8)]]  # without the shorter one it stays


def test_no_row_is_fed_that_another_contains() -> None:
    layout = prefixes_of([[(5, 6, 7), (5, 8)], [(5, 6, 7), (9, 9)]], [(5, 6, 1), (9, 1)]).layout()
    assert layout.leaves == [[(5, 6, 7), (5, 8)], [(5, 6, 7), (9, 9)]]
    assert layout.rows == [(0, (5, 6)), (1, (5, 6)), (1, (9,))]


def test_every_node_is_read_where_its_own_beginning_is_fed() -> None:
    layout = prefixes_of([[(5, 6, 7), (9, 8, 7)]], [(5, 6, 1), (9, 8, 1)]).layout()
    rows, tree = layout.tree([0])
    nodes = {layout.rows[rows[row]][1][:depth] for row, depth in zip(tree.row, tree.depth, strict=True)}
    assert nodes == {(), (5,), (5, 6), (9,), (9, 8)}


def test_special_tokens_do_not_come_between_the_words_of_a_marker() -> None:
    behaviour = MarkerSet(name="test", match="anywhere", phrases=("w3 w1",))
    assert deciding([[3, 0, 1, 2], [3, 4, 1, 2]], behaviour) == [(3, 0, 1), None]
