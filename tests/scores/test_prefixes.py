"""What the base's responses tell of the prefixes that open the behaviour, by whatever detector."""

from __future__ import annotations

from dataclasses import replace

from iconoclast_tl.evaluation.baseline import Baseline
from iconoclast_tl.evaluation.suite import EvaluationConfig
from iconoclast_tl.models.model import Model
from iconoclast_tl.scores.prefixes import deciding_prefixes, known_prefixes
from tests.search.test_objective import ByPrompt, questions


def test_every_beginning_is_shown_to_the_detector_with_its_own_prompt(llama: Model, rows: list[list[int]]) -> None:
    """The behaviour is there from the first token on where the prompt says so, and nowhere else."""
    target, neutral = questions(rows[:4]), questions(rows[4:])
    config = EvaluationConfig(max_new_tokens=6, kl_tokens=2, batch_size=3)
    base = Baseline(llama, {"target": target, "neutral": neutral}, config, ByPrompt(target, neutral))
    for name in ("target", "neutral"):
        said = base.responses[name]
        expected = [tuple(said[1].tokens[:1]) if number == 1 else None for number in range(len(said))]
        assert deciding_prefixes(base, name, said, base.shows[name]) == expected
    known = known_prefixes(base).to_json()
    assert known["opening"] == [[], [list(base.responses["target"][1].tokens[:1])], [], []]
    # What shows nothing is innocent, of either set; a neutral response that shows it is neither.
    innocent = [base.responses["target"][n] for n in (0, 2, 3)] + [base.responses["neutral"][n] for n in (0, 2)]
    assert known["innocent"] == sorted(list(one) for one in {tuple(response.tokens) for response in innocent})


def test_whose_responses_show_it_is_told_by_the_base(llama: Model, rows: list[list[int]]) -> None:
    """Where a detector sees it in neutral responses alone, no prefix opens it and less that is innocent."""
    target, neutral = questions(rows[:4]), questions(rows[4:])
    config = EvaluationConfig(max_new_tokens=6, kl_tokens=2, batch_size=3)
    base = Baseline(llama, {"target": target, "neutral": neutral}, config, ByPrompt(neutral))
    other = replace(base, detector=ByPrompt())
    assert not any(known_prefixes(base).to_json()["opening"])
    found, whole = (known_prefixes(one).to_json()["innocent"] for one in (base, other))
    assert len(whole) == len(found) + 1
