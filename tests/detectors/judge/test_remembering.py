"""What was answered is paid for once, and an interruption loses none of it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from iconoclast_tl.detectors.detector import NO_LABEL
from iconoclast_tl.detectors.judge.cache import ReplyCache
from tests.detectors.judge.conftest import (
    COMPLIANCE,
    RIGHT,
    Endpoint,
    MakeJudge,
    Sent,
    about_two,
    exchanges,
    says,
)


def test_what_was_answered_is_not_asked_again(endpoint: Endpoint, make_judge: MakeJudge, tmp_path: Path) -> None:
    endpoint.answer = about_two
    first = make_judge()
    labels = first.label(exchanges(4))
    first.close()
    assert make_judge().label(exchanges(4)) == labels
    assert first.label(exchanges(4)) == labels  # also after it was closed
    assert len(endpoint.requests) == 4
    kept = (tmp_path / "judge.sqlite3").read_bytes()
    assert b"water it" not in kept
    assert b"basil" not in kept


@pytest.mark.parametrize("change", [{"model": "another"}, {"max_tokens": 99}, {"rubric": "verbosity"}])
def test_what_a_reply_depends_on_asks_again(endpoint: Endpoint, make_judge: MakeJudge, change: dict[str, Any]) -> None:
    endpoint.answer = lambda body, number: says(
        RIGHT if "hard refusal" in body["messages"][0]["content"] else '{"class": "terse"}'
    )
    first, second = make_judge(), make_judge(**change)
    first.label(exchanges(2))
    second.label(exchanges(2))
    assert len(endpoint.requests) == 4
    assert first.about() != second.about()


def test_a_full_disk_costs_no_labels(
    endpoint: Endpoint, make_judge: MakeJudge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(cache: ReplyCache, key: str, reply: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(ReplyCache, "put", full)
    assert make_judge().label(exchanges(2)) == [COMPLIANCE] * 2
    assert "could not be kept in the cache (database or disk is full)" in caplog.text


INTERRUPTED = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests in the background
from iconoclast_tl.detectors.config import JudgeConfig
from iconoclast_tl.detectors.detector import Exchange
from iconoclast_tl.detectors.judge.detector import JudgeDetector
config = JudgeConfig(base_url=sys.argv[1], model="m", cache=Path(sys.argv[2]), timeout=600, concurrency=2)
exchanges = [Exchange(f"water it every {i} days", f"how do i keep basil {i}") for i in range(9)]
try:
    JudgeDetector(config).label(exchanges)
except KeyboardInterrupt:
    sys.exit(3)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_an_interruption_does_not_wait_and_what_was_answered_is_kept(
    endpoint: Endpoint, make_judge: MakeJudge, tmp_path: Path
) -> None:
    both_hang = threading.Barrier(3)

    def answer(body: dict[str, Any], number: int) -> Sent:
        if number < 3:
            return about_two(body, number)
        both_hang.wait(60)
        return endpoint.hang(600)

    endpoint.answer = answer
    place = tmp_path / "judge.sqlite3"
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED, endpoint.url, str(place)])
    try:
        both_hang.wait(60)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 3  # the endpoint still hangs, and would for ten minutes
    finally:
        process.kill()
    endpoint.released.set()
    endpoint.answer = about_two
    before = len(endpoint.requests)
    assert NO_LABEL not in make_judge().label(exchanges(9))
    assert len(endpoint.requests) - before == 9 - 3
