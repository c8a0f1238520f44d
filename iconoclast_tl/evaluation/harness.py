"""Capabilities by the lm-evaluation-harness: its tasks on the base and on the changed model, document by document.

The harness (EleutherAI, https://github.com/EleutherAI/lm-evaluation-harness, `pip install 'iconoclast-tl[harness]'`)
wraps the Hugging Face model that is loaded here; for the second run the change is switched on under it. So both see the
same documents, examples and template, nothing is loaded twice, and results can be compared pairwise.

What is scored is the harness's business, with two exceptions: a rendered chat gets no special tokens but the template's
own, and log-probabilities are taken in float32 also of half-precision models.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from iconoclast_tl.evaluation.base_and_edited import ChangedModel
from iconoclast_tl.evaluation.harness_log import reporting
from iconoclast_tl.evaluation.task_results import TaskResults, task_result
from iconoclast_tl.execution.batching import is_out_of_memory
from iconoclast_tl.foundation.errors import UserError
from iconoclast_tl.foundation.stage_config import Changeable, StageConfig
from iconoclast_tl.models.model import Model

BOOTSTRAP: Final = 1000
"""Resamples for standard errors that have no closed form."""
DEFAULT_BUDGET: Final = 256
"""Tokens that the harness generates where a task does not say."""
log = logging.getLogger(__name__)


def _absolute(folder: Path | None) -> Path | None:
    """So that the run can be gone on with from another folder."""
    return None if folder is None else folder.expanduser().resolve()


class HarnessConfig(StageConfig):
    """Tasks of the lm-evaluation-harness, and how they are asked."""

    tasks: Annotated[tuple[str, ...], Changeable] = ()
    """Tasks, groups or tags, such as mmlu and gsm8k; none: the harness is not run."""
    folder: Annotated[Path | None, AfterValidator(_absolute), Changeable] = None
    """A folder of task files of your own. Task files may hold code, which is run."""
    num_fewshot: Annotated[int | None, Changeable] = Field(None, ge=0)
    """Solved examples before every question; unset: as the task says."""
    limit: Annotated[int | None, Changeable] = Field(None, ge=1)
    """Only the first documents of every task; unset: all. Numbers with a limit are no benchmark results."""
    chat_template: Annotated[bool, Changeable] = True
    """Whether questions are put through the model's chat template."""


def require_tasks(tasks: Sequence[str], folder: Path | None = None) -> None:
    """Raise `UserError` where the harness is not installed, or knows one of `tasks` neither by itself nor in `folder`.

    Reads the names of all tasks, which takes seconds, and nothing else: to be called before a model is loaded.
    """
    known = _manager(folder).all_tasks if tasks else []
    for task in tasks:
        if task not in known:
            close = difflib.get_close_matches(task, known, n=4)
            raise UserError(
                f"the lm-evaluation-harness {_version()} has no task {task!r}",
                got=f"{len(known)} tasks and groups" + (f", those in {folder} among them" if folder else ""),
                want=f"a name such as {', '.join(close)}" if close else "one of them",
                mend="`lm-eval ls tasks` lists them" if folder is None else "a file in that folder says `task: NAME`",
            )


def run_tasks(
    model: Model,
    change: ChangedModel | None,
    config: HarnessConfig,
    batch_size: int,
    system: str | None = None,
) -> TaskResults:
    """Run `config.tasks` on the model as it is (no hooks may be on) and, where there is a `change`, under it.

    batch_size: requests in one forward pass; halved where memory runs out. system: a system message for every question.
    Raises `UserError` for an unknown task, one whose documents cannot be had, whose code would have to be run
    unconfirmed or whose answers do not fit the model's context, and for a model without the template that is asked for.
    The state of random generators is as before when it returns.
    """
    if not config.tasks:
        raise ValueError("no tasks for the harness")
    require_tasks(config.tasks, config.folder)
    if config.chat_template and not model.tokenizer.chat_template:
        raise UserError(
            "this model has no chat template",
            want="a chat model",
            mend="pass --set harness.chat_template=false for a base model",
        )
    with _own_randomness(model):
        with reporting(logging.ERROR):
            loaded = _loaded(config)
            _require_runnable(loaded["tasks"], model.context_length)
            wrapped = _wrapped(model, batch_size, config.chat_template)
        found = {"base": _evaluated(wrapped, model, loaded, config, system)}
        if change is not None:
            with change():
                found["edited"] = _evaluated(wrapped, model, loaded, config, system)
    tasks = {name: task_result(name, found) for name in found["base"]["results"]}
    return TaskResults(_version(), config.chat_template, config.limit, tasks)


def _version() -> str:
    import lm_eval

    return str(lm_eval.__version__)


@functools.cache
def _manager(folder: Path | None) -> Any:
    """All names that there are; kept, since the harness reads 14,000 files to find them."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            "the lm-evaluation-harness is not installed",
            got=error,
            mend="pip install 'iconoclast-tl[harness]'",
        ) from error
    if folder is not None and not folder.is_dir():
        raise UserError(f"there is no folder {folder}", want="a folder of task files (.yaml) for the harness")
    with reporting(logging.ERROR):
        return TaskManager(include_path=None if folder is None else str(folder))


def _loaded(config: HarnessConfig) -> dict[str, Any]:
    """The tasks with their documents."""
    try:
        loaded: dict[str, Any] = _manager(config.folder).load(list(config.tasks))
    except Exception as error:  # files, code and data sets of others: a dozen kinds, each means that they cannot be had
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot load the tasks {', '.join(config.tasks)}",
            got=first_line,
            want="each task once, and data sets that are on the hub, at hand or in the cache",
        ) from error
    return loaded


def _require_runnable(tasks: Mapping[str, Any], context_length: int | None) -> None:
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"the task {name} runs code that the model writes", want="a task that does not")
        if getattr(task, "MULTIMODAL", False):
            raise UserError(f"the task {name} shows more than text", want="a task in text")
        if task.OUTPUT_TYPE == "generate_until" and context_length is not None:
            said = task.get_config("generation_kwargs") or {}
            keys = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
            budget = next((said[key] for key in keys if said.get(key) is not None), DEFAULT_BUDGET)
            if int(budget) >= context_length:
                raise UserError(
                    f"answers to the task {name} do not fit the model's context",
                    got=f"{budget} tokens to generate",
                    want=f"less than {context_length}",
                    mend="set `generation_kwargs: {max_gen_toks: …}` in a task file of your own",
                )


def _wrapped(model: Model, batch_size: int, chat_template: bool) -> Any:
    """The loaded model as the harness sees it. Hooks and PEFT change its modules in place, so it sees those, too."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = copy.deepcopy(model.tokenizer)  # the harness gives it a padding token
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.pad_id)
    return HFLM(
        pretrained=model.hf,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",
        max_length=model.context_length,
        # A template writes its own special tokens.
        add_bos_token=False if chat_template else None,
    )


def _evaluated(wrapped: Any, model: Model, loaded: Mapping[str, Any], config: HarnessConfig, system: str | None) -> Any:
    """One run of all tasks on the model as it is now, with a smaller batch once more where memory runs out.

    The harness begins with the longest requests, so that this happens at once.
    """
    from lm_eval import simple_evaluate

    while True:
        try:
            with reporting(logging.WARNING):
                return simple_evaluate(
                    model=wrapped,
                    tasks=_outermost(loaded),
                    num_fewshot=config.num_fewshot,
                    limit=config.limit,
                    bootstrap_iters=BOOTSTRAP,
                    log_samples=True,
                    system_instruction=system,
                    apply_chat_template=config.chat_template,
                    task_manager=_manager(config.folder),
                )
        except RuntimeError as error:
            if wrapped.batch_size_per_gpu == 1 or not is_out_of_memory(error):
                raise
        _free(model)
        wrapped.batch_size_per_gpu = -(-wrapped.batch_size_per_gpu // 2)
        log.warning("out of memory; the harness begins anew with batches of %d", wrapped.batch_size_per_gpu)


def _outermost(loaded: Mapping[str, Any]) -> list[Any]:
    """Groups and tasks that are in no other group: the others come with theirs."""
    groups = loaded.get("groups", {})
    inner = {task.task_name for group in groups.values() for task in group.get_all_tasks()}
    inner |= {one.name for group in groups.values() for one in group.get_all_groups()}
    return [one for name, one in {**groups, **loaded["tasks"]}.items() if name not in inner]


def _free(model: Model) -> None:
    import torch

    if model.device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _own_randomness(model: Model) -> Iterator[None]:
    """The harness seeds everything; who called it gets its generators back as they were."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
