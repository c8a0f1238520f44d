"""The number of rows that fits is found in few steps, never more than fits, and remembered."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iconoclast_tl.execution import batch_size
from iconoclast_tl.execution.batch_size import MOST, SHARE, UNMEASURED, Line, fitting, measure_line
from iconoclast_tl.execution.memory import Meter
from iconoclast_tl.models.model import Model

GIGABYTE = 2**30


def measured(fixed: float, per_row: float, free: int, runs_out: float = math.inf) -> tuple[int, list[int]]:
    """The rows that are found for a machine of this line, and the sizes that were tried."""
    tried: list[int] = []

    def peak(rows: int) -> int:
        tried.append(rows)
        used = fixed + per_row * rows
        if used > runs_out:
            raise torch.OutOfMemoryError("too many")
        return int(used)

    return measure_line(peak, free).rows(free), tried


@settings(max_examples=200, deadline=None)
@given(share=st.floats(0, 0.4), per_row=st.floats(1e4, 4 * GIGABYTE), free=st.integers(GIGABYTE, 200 * GIGABYTE))
def test_no_more_is_found_than_fits_and_no_less_than_half_of_it(share: float, per_row: float, free: int) -> None:
    """share: of the free memory that a batch takes whatever its size."""
    fixed = share * free
    found, tried = measured(fixed, per_row, free)
    fits = [2**step for step in range(MOST.bit_length()) if fixed + per_row * 2**step <= SHARE * free]
    if not fits:
        assert found == 1  # what does not fit at all is told when it is run
        return
    assert found <= fits[-1] * 1.01
    assert found >= fits[-1] / 2
    assert max(tried) <= 2 * fits[-1]


def test_as_soon_as_all_would_fit_it_ends() -> None:
    assert measured(0, 2**26, 16 * GIGABYTE) == (MOST, [1])


def test_a_reading_that_noise_could_have_made_is_not_believed() -> None:
    """Freed memory that a process keeps hides what the first batches take."""
    assert measured(0, 2**20, 16 * GIGABYTE) == (MOST, [1, 2, 4, 8, 16, 32, 64])
    hidden = [0, 0, 0, 0, 10 * GIGABYTE]
    line = measure_line(lambda rows: hidden[rows.bit_length() - 1], 16 * GIGABYTE)
    assert line.rows(16 * GIGABYTE) == 8


def test_the_line_is_followed_once_two_steps_agree() -> None:
    found, tried = measured(GIGABYTE, GIGABYTE / 4, 40 * GIGABYTE)
    assert (found, tried) == (64, [1, 2, 4])
    found, tried = measured(3 * GIGABYTE, 2**19, 4 * GIGABYTE)  # steps that are lost in noise say nothing
    assert len(tried) > 4 or found == 1


def test_memory_that_runs_out_ends_the_search_at_what_fitted() -> None:
    """As on a GPU where other things lie: there is less than is said to be free."""
    assert measured(0, 3 * GIGABYTE, 200 * GIGABYTE, runs_out=5 * GIGABYTE) == (1, [1, 2])
    assert measured(0, 3 * GIGABYTE, 200 * GIGABYTE, runs_out=11 * GIGABYTE) == (2, [1, 2, 4])
    assert measured(0, 3 * GIGABYTE, 200 * GIGABYTE)[0] > 2


def test_what_another_process_left_is_not_remembered(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "LITTLE", 2**60)  # so that it is measured

    def runs_out(self: Meter, work: object) -> int:
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("something else is here")
        return 2**28

    calls: list[int] = []
    monkeypatch.setattr(Meter, "peak", runs_out)
    monkeypatch.setattr("iconoclast_tl.execution.memory._free_here", lambda: GIGABYTE)
    assert fitting(llama, 20, 4).rows == 1
    assert not batch_size._file().exists()


def test_one_row_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        measured(0, GIGABYTE, GIGABYTE, runs_out=1)


def test_peak_memory_is_seen_on_the_cpu() -> None:
    """The largest while it runs, also of what is given back before it ends."""
    meter = Meter([torch.device("cpu")])

    def work() -> None:
        for _ in range(20):
            torch.ones(100, 2**20).add_(1).sum()  # 400 MB

    assert 0.8 * 400 * 2**20 < meter.peak(work) < 1.5 * 400 * 2**20
    assert Meter([torch.device("cpu")]).peak(lambda: None) < 50 * 2**20
    assert meter.free > GIGABYTE // 4


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_what_its_limit_leaves(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one around it; what files it has read count as free, or a model that was just read would fill it."""
    from iconoclast_tl.execution import memory

    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    job = tmp_path / ("memory" if version == 1 else "") / "slurm" / "job"
    job.mkdir(parents=True)
    (tmp_path / "own").write_text("4:cpu:/x\n3:memory:/slurm/job\n" if version == 1 else "0::/slurm/job\n")
    monkeypatch.setattr(memory, "GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUP", tmp_path / "own")

    def limited(folder: Path, most: str) -> None:
        (folder / limit).write_text(most)
        (folder / used).write_text("400000")
        (folder / "memory.stat").write_text("inactive_file 300000\ntotal_inactive_file 300000\n")

    assert Meter([torch.device("cpu")]).free > GIGABYTE // 4
    limited(job, "1000000")
    assert Meter([torch.device("cpu")]).free == 900000
    limited(job.parent, "500000")
    assert Meter([torch.device("cpu")]).free == 400000
    limited(job, "max")
    limited(job.parent, "max")
    assert Meter([torch.device("cpu")]).free > GIGABYTE // 4


def test_what_was_measured_is_remembered_for_this_model_and_length(
    llama: Model, biased: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_size, "LITTLE", 2**60)  # so that it is measured
    passes: list[int] = []
    honest = batch_size._pass
    monkeypatch.setattr(batch_size, "_pass", lambda *given: (passes.append(given[1]), honest(*given)))
    assert fitting(llama, 20, 4).rows == MOST
    n = len(passes)
    assert fitting(llama, 21, 4).rows == MOST
    assert len(passes) == n
    fitting(llama, 20, 5)
    fitting(biased, 20, 4)
    assert passes.count(1) == 3
    batch_size._file().write_text("{")  # a damaged file is only a cache
    assert fitting(llama, 20, 4).rows == MOST
    assert passes.count(1) == 4


def test_less_free_memory_makes_smaller_batches_of_the_same_line(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "LITTLE", 2**60)  # so that it is measured
    assert fitting(llama, 20, 4).rows == MOST
    (key,) = json.loads(batch_size._file().read_text())
    batch_size._remember(key, Line(0.0, GIGABYTE))
    monkeypatch.setattr("iconoclast_tl.execution.memory._free_here", lambda: 10 * GIGABYTE)
    assert fitting(llama, 20, 4).rows == 4


def test_a_folder_that_cannot_be_written_costs_the_memory_only(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fitting(llama, 20, 4).rows == MOST


def test_where_memory_cannot_be_measured_a_small_number_is_taken(llama: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "can_measure", staticmethod(lambda devices: False))
    assert fitting(llama, 20, 4) == batch_size.Fit(UNMEASURED, None, None)


def test_on_the_cpu_a_batch_takes_no_more_than_a_share_of_the_weights(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Meter, "peak", lambda meter, work: pytest.fail("nothing need be measured"))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in llama.hf.parameters())
    assert fitting(llama, 20, 4).rows == MOST  # so little that it does not matter
    monkeypatch.setattr(batch_size, "LITTLE", 0)
    monkeypatch.setattr(batch_size, "ON_CPU", 10.0)
    found = fitting(llama, 20, 4)
    assert found.bytes_per_row is not None
    assert found.rows * found.bytes_per_row <= batch_size.ON_CPU * weights < 2 * found.rows * found.bytes_per_row
    assert found.rows < MOST
