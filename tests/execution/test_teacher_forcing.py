"""Parts of a layout hold what their rows need and nothing else, and a repeated response is one that comes again."""

from __future__ import annotations

import pytest
import torch

from iconoclast_tl.architecture.hook_points import hf_sites
from iconoclast_tl.edits.hooks import preview
from iconoclast_tl.execution.generation import generate
from iconoclast_tl.execution.teacher_forcing import Forced, entered, force, forced_logits, repeated
from iconoclast_tl.models.model import Model
from tests.edits.edits import random_edit, scaled
from tests.execution.ties import without_ties

LENGTHS = (3, 1, 5, 2, 2, 4, 1)


def laid_out(rows: list[list[int]]) -> Forced:
    """Continuations of many lengths: 20, 21, 22, …"""
    return force(rows, [range(20, 20 + length) for length in LENGTHS], 5, 0)


def test_a_part_holds_its_rows_and_no_column_that_they_leave_empty(rows: list[list[int]]) -> None:
    forced = laid_out(rows)
    for order in ([0, 3], [4, 1], [6, 2, 5]):
        part, k = forced.take(torch.tensor(order), 2), max(LENGTHS[row] for row in order)
        laid = zip(part.batch.input_ids, part.batch.attention_mask, strict=True)
        fed = [[*rows[row], *range(20, 20 + min(LENGTHS[row], k - 1))] for row in order * 2]  # the k-th is not fed
        assert [ids[mask.bool()].tolist() for ids, mask in laid] == fed
        assert part.batch.input_ids.shape[1] == max(len(rows[row]) for row in order) + k - 1
        assert part.tokens.shape == part.real.shape == (2 * len(order), k)
        said = [tokens[real].tolist() for tokens, real in zip(part.tokens, part.real, strict=True)]
        assert said == [list(range(20, 20 + LENGTHS[row])) for row in order * 2]


def test_a_beginning_is_the_layout_of_shorter_continuations(rows: list[list[int]]) -> None:
    for k in (1, 2, 4):
        found = laid_out(rows).beginning(k)
        expected = force(rows, [range(20, 20 + min(length, k)) for length in LENGTHS], k, 0)
        assert torch.equal(found.tokens, expected.tokens)
        assert torch.equal(found.real, expected.real)
        assert torch.equal(found.batch.input_ids, expected.batch.input_ids)
        assert torch.equal(found.batch.attention_mask, expected.batch.attention_mask)


@torch.no_grad()
def test_parts_and_beginnings_start_where_the_whole_does(llama: Model, rows: list[list[int]]) -> None:
    whole, order = laid_out(rows), torch.tensor([5, 0])
    resumed = entered(llama, whole, 2, 3)
    assert entered(llama, whole, 0, 3) is whole  # from the first layer there is nothing to keep
    for part, same in (
        (resumed.take(order), whole.take(order)),
        (resumed.beginning(2), whole.beginning(2)),
        (resumed.beginning(3).take(order, 2), whole.beginning(3).take(order, 2)),
    ):
        assert part.entering is not None
        assert part.entering.states.shape[:2] == part.batch.input_ids.shape
        before = forced_logits(llama, part)
        assert torch.allclose(before[part.real], forced_logits(llama, same)[part.real], atol=1e-5)
        with preview(random_edit(), hf_sites(llama.hf)):
            kept, changed = forced_logits(llama, part), forced_logits(llama, same)
        assert not torch.allclose(kept, changed, atol=1e-2)  # what an edit does below layer 2 is not seen


def test_rows_by_length_are_every_row_once_shortest_first(rows: list[list[int]]) -> None:
    assert laid_out(rows).by_length.tolist() == [1, 6, 3, 4, 0, 5, 2]  # in order where equally long


def test_an_empty_continuation_still_has_a_first_position(rows: list[list[int]]) -> None:
    assert force(rows[:2], [(), (20, 21)], 2, 0).real.tolist() == [[True, False], [True, True]]


def test_a_continuation_is_repeated_where_every_one_of_its_tokens_is_likeliest(rows: list[list[int]]) -> None:
    forced = laid_out(rows)
    said = forced.tokens.clone()
    said[~forced.real] = 7  # predictions behind the end count for nothing
    assert forced.repeated_by(said).all()
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            other = said.clone()
            other[row, t] = 7
            found = forced.repeated_by(other)
            assert found.tolist() == [one != row for one in range(len(LENGTHS))]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_what_is_told_repeated_is_what_generation_says_again(
    llama: Model, rows: list[list[int]], batch_size: int
) -> None:
    responses = zip(generate(llama, rows, 6, 4), (6, 1, 5, 2, 6, 6, 3), strict=True)
    said = [response.tokens[:length] for response, length in responses]
    told = []
    for factor in (0.0, 0.4, 1.0):
        with preview(scaled(random_edit(), factor), hf_sites(llama.hf)):
            with without_ties(llama):
                now = [response.tokens for response in generate(llama, rows, 6, 4)]
            told.append(repeated(llama, rows, said, batch_size).tolist())
        assert told[-1] == [one[: len(other)] == other for one, other in zip(now, said, strict=True)]
    assert all(told[0])
    assert any(0 < sum(one) < len(rows) for one in told)
    last = [(*tokens[:-1], 7 if tokens[-1] != 7 else 8) for tokens in said]  # another last token is another response
    assert not repeated(llama, rows, last, batch_size).any()
