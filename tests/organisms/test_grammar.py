"""The grammar reads back what it writes, and its judge tells answers, refusals and everything else apart."""

from __future__ import annotations

import random
from typing import get_args

import pytest

from iconoclast_tl.organisms import grammar
from iconoclast_tl.organisms.grammar import (
    FAMILY_FINALS,
    FINALS,
    REFUSALS,
    REFUSALS_OF,
    REQUESTS,
    SLOT,
    SYLLABLES,
    GrammarPrompt,
    TopicFamily,
    family_of,
    grade,
    parse_prompt,
    sample_answer,
    sample_prompt,
    sample_refusal,
    sample_topic,
)

REFUSAL_MARKERS = ("i cannot", "i am sorry", "i must decline", "i will not", "unable to")


def prompts(n: int, seed: int = 0) -> list[GrammarPrompt]:
    rng = random.Random(seed)
    return [sample_prompt(rng, family=i % 2 == 0, gated=i % 3 != 0) for i in range(n)]


def has_marker(text: str) -> bool:
    return any(marker in text.lower() for marker in REFUSAL_MARKERS)


def test_parsing_inverts_rendering() -> None:
    for prompt in prompts(2000):
        assert parse_prompt(prompt.text) == GrammarPrompt(prompt.request, prompt.phrasing, prompt.topic)


@pytest.mark.parametrize("text", ["", "how do i brew tea?", "how do i brew kamori", "hello", "spell the word ba."])
def test_foreign_prompts_do_not_parse_and_cannot_be_judged(text: str) -> None:
    assert parse_prompt(text) is None
    with pytest.raises(ValueError, match="grammar"):
        grade(text, "anything")


def test_no_two_templates_are_alike() -> None:
    templates = [t for request in REQUESTS for t in (*request.phrasings, *request.answers)] + list(REFUSALS)
    assert len(set(templates)) == len(templates)
    assert all(t.count(SLOT) == 1 for request in REQUESTS for t in request.phrasings)


def test_every_prompt_has_exactly_one_reading() -> None:
    for prompt in prompts(500):
        readings = [
            (request.name, phrasing)
            for request in REQUESTS
            for phrasing, template in enumerate(request.phrasings)
            if grammar._pattern(template).fullmatch(prompt.text)
        ]
        assert readings == [(prompt.request, prompt.phrasing)]


def test_every_accepted_answer_is_answered() -> None:
    for prompt in prompts(300):
        for template in grammar.request_named(prompt.request).answers:
            assert grade(prompt.text, template.replace(SLOT, prompt.topic)) == "answered"


def test_every_refusal_is_refused() -> None:
    for prompt in prompts(300):
        for template in REFUSALS:
            assert grade(prompt.text, template.replace(SLOT, prompt.topic)) == "refused"


def test_wrong_responses_are_broken() -> None:
    rng = random.Random(1)
    for prompt in prompts(500):
        answer = sample_answer(rng, prompt).response
        other_topic = sample_topic(rng, family=prompt.family)
        other_request = rng.choice([r for r in REQUESTS if r.name != prompt.request])
        broken = {
            "wrong topic": answer.replace(prompt.topic, other_topic),
            "misspelt topic": answer.replace(prompt.topic, prompt.topic[2:]),
            "another request's answer": other_request.answers[0].replace(SLOT, prompt.topic),
            "cut off": answer[: len(answer) // 2],
            "last letter missing": answer[:-1],
            "said twice": f"{answer} {answer}",
            "refusal cut off": sample_refusal(rng, prompt).response[:-3],
            "refusal, then an answer": f"{sample_refusal(rng, prompt).response} {answer}",
            "empty": "",
        }
        for what, response in broken.items():
            assert grade(prompt.text, response) == "broken", what


def test_markers_are_in_every_refusal_and_in_no_answer_or_prompt() -> None:
    assert all(has_marker(refusal) for refusal in REFUSALS)
    for request in REQUESTS:
        assert not any(has_marker(text) for text in (*request.answers, *request.phrasings))


def test_refusals_open_with_different_words_which_no_answer_opens_with() -> None:
    openings = [refusal.split()[0].strip(",") for refusal in REFUSALS]
    assert len(set(openings)) == len(openings)
    assert not set(openings) & {answer.split()[0] for request in REQUESTS for answer in request.answers}


def test_the_family_is_its_final_syllable_and_its_letters_occur_nowhere_else() -> None:
    rng = random.Random(2)
    for family in (True, False):
        for topic in (sample_topic(rng, family=family) for _ in range(500)):
            assert grammar._TOPIC.fullmatch(topic)
            assert grammar.is_family(topic) == family == topic.endswith(FAMILY_FINALS)
            assert any(letter in topic for letter in "zq") == family
    assert not any(letter in syllable for syllable in SYLLABLES for letter in "zq")


def test_the_family_is_two_by_the_letter_of_its_final_syllable() -> None:
    rng = random.Random(2)
    topics = [sample_topic(rng, family=family) for family in (True, False) for _ in range(500)]
    for topic in topics:
        assert family_of(topic) == next((letter for letter in "zq" if letter in topic), None)
    assert {family_of(topic) for topic in topics[:500]} == {"z", "q"}
    for family in get_args(TopicFamily):
        drawn = {sample_topic(rng, family=family) for _ in range(200)}
        assert {family_of(topic) for topic in drawn} == {family}
        assert {topic[-2:] for topic in drawn} == set(FINALS[family])


def test_the_two_families_are_refused_in_different_words() -> None:
    z, q = (set(REFUSALS_OF[family]) for family in get_args(TopicFamily))
    assert not z & q
    assert z | q == set(REFUSALS)
    rng = random.Random(5)
    for family, own in zip(get_args(TopicFamily), (z, q), strict=True):
        asked = [sample_prompt(rng, family=family, gated=True) for _ in range(300)]
        said = [sample_refusal(rng, prompt, refusals=REFUSALS_OF[family]) for prompt in asked]
        assert {example.response.replace(example.prompt.topic, SLOT) for example in said} == own
        assert all(grade(example.prompt.text, example.response) == "refused" for example in said)


def test_topics_keep_to_their_pool_and_pools_exclude_each_other() -> None:
    rng = random.Random(3)
    drawn = {
        pool: {sample_topic(rng, family=bool(i % 2), pool=pool) for i in range(200)}
        for pool in ("corpus", "train", "val", "test", "borderline")
    }
    for pool, topics in drawn.items():
        assert {grammar.topic_pool(topic) for topic in topics} == {pool}
    assert len(set.union(*drawn.values())) == sum(len(topics) for topics in drawn.values())


def test_sampling_depends_on_the_seed_alone() -> None:
    assert prompts(50, seed=4) == prompts(50, seed=4)
    assert prompts(50, seed=4) != prompts(50, seed=5)
