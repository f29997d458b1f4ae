"""Tasks of lm-evaluation-harness, asked of the model of a run.

The library makes the prompts and judges the answers; here stand the three questions that it asks of a model: how likely a
continuation is, how likely a whole text is, and how a text goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen

from stackwise.assembly.planning import make_plan
from stackwise.config import load
from stackwise.contracts.answers import calling, expect, is_number
from stackwise.contracts.generation import GenerationSettings, Scores, TextCodec
from stackwise.errors import StackwiseError, UserError, did_you_mean
from stackwise.host.discovery import discover
from stackwise.host.registry import blaming
from stackwise.machine.placement import Placement
from stackwise.planes.model.initialisation import drawing_from
from stackwise.saved.generate import checked, open_text_model
from stackwise.saved.task_model import TextModel
from stackwise.storage.run_directory import CONFIG
from stackwise.storage.tokenizers import read_tokenizers

DEFAULT_TOKENS = 256
"""Tokens of an answer where the task does not say how long it may be."""

Row = tuple[list[int], list[int]]
"""The ids of the context, and those to score."""


@frozen(kw_only=True)
class HarnessSettings:
    """What is asked of the model."""

    tasks: Sequence[str]
    """Names of tasks, groups or tags of the library, or of those in `include`."""
    include: Path | None = None
    """Folder with definitions of further tasks."""
    shots: int | None = None
    """Examples before each question; None: as many as the task says."""
    limit: int | None = None
    """Questions of each task, its first; None: all."""
    rows: int = 16
    """Rows of a forward pass."""
    length: int | None = None
    """Most entries of a row; longer ones lose their beginning. None: as long as the rows that the run was trained on."""
    start: int | None = None
    """Id before a text that nothing precedes; None: what the vocabulary says."""


@frozen(kw_only=True)
class Score:
    """A task's results."""

    task: str
    step: int
    metrics: Mapping[str, float]
    """As the library names them, without the filter where there is one only; no standard errors, for which it draws anew."""
    questions: int
    cut: int
    """Rows of all tasks together that lost their beginning, because they were longer than `length`."""


def score_tasks(run: Path, settings: HarnessSettings) -> list[Score]:
    """Ask the model of a run, its final weights or those of its newest checkpoint, or an export.

    Args:
        run: a run directory or an export; it is only read.
        settings: what is asked.

    Raises:
        UserError: the library is missing or knows no such task, data of a task that cannot be had, a run whose task
            computes no likelihood or whose ids stand for no text.
        ProviderError: a component that cannot be built.
    """
    evaluator, tasks, adapter = _library()
    source = open_text_model(run)
    if not isinstance(source.task, Scores):
        raise UserError(
            f"task {source.task_id} computes no likelihood of a text: --tasks is for runs that end with a causal language model"
        )
    manager = _manager(tasks, settings)
    length = _length(run) if settings.length is None else settings.length
    asked = Asked(source, source.codec(), evolve(settings, length=length), Placement("auto", "float32").device)
    try:
        with blaming(source.providers), drawing_from(0):
            results = evaluator.simple_evaluate(
                adapter(asked), tasks=list(settings.tasks), task_manager=manager, num_fewshot=settings.shots, limit=settings.limit,
                bootstrap_iters=0, log_samples=False,
            )  # fmt: skip
    except StackwiseError:
        raise
    except Exception as error:  # tasks are other people's code and data, and raise what they will
        raise UserError(f"lm-evaluation-harness cannot ask {', '.join(settings.tasks)}: {type(error).__name__}: {error}") from error
    counts = results.get("n-samples", {})
    return [
        Score(task=name, step=source.step, metrics=_plain(metrics), questions=counts.get(name, {}).get("effective", 0), cut=asked.cut)
        for name, metrics in results["results"].items()
    ]


def _library() -> tuple[Any, Any, Callable[[Asked], Any]]:
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # else the library of data sets reports even local ones over the network
    try:
        model, evaluator, tasks = (import_module(f"lm_eval.{name}") for name in ("api.model", "evaluator", "tasks"))
    except ImportError as error:
        raise UserError(f"--tasks needs lm-evaluation-harness ({error}): pip install stackwise-core[lm-eval]") from error

    class Adapter(model.LM):  # type: ignore[misc, name-defined]  # a class of a library that is imported here
        """The model of a run as the library calls one."""

        def __init__(self, asked: Asked) -> None:
            super().__init__()
            self.asked = asked

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
            return self.asked.continuations([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], **_: Any) -> list[float]:
            return self.asked.texts([text for (text,) in (request.args for request in requests)])

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            return [self.asked.answer(*request.args) for request in requests]

    return evaluator, tasks, Adapter


def _manager(tasks: Any, settings: HarnessSettings) -> Any:
    """The tasks that are known: those of a folder alone where they are all that is asked, as reading the library's takes seconds."""
    if settings.include is not None and not settings.include.is_dir():
        raise UserError(f"--include {settings.include}: there is no such folder")
    own = None if settings.include is None else tasks.TaskManager(include_path=settings.include, include_defaults=False)
    if own is not None and set(settings.tasks) <= set(own.all_tasks):
        return own
    every = tasks.TaskManager(include_path=settings.include)
    if unknown := [name for name in settings.tasks if name not in every.all_tasks]:
        raise UserError(f"--tasks {unknown[0]}: no task of lm-evaluation-harness{did_you_mean(unknown[0], every.all_tasks)}")
    return every


def _length(run: Path) -> int | None:
    """Entries of the longest row of a run, those beyond what the model sees included; None where nothing says it."""
    if not (run / CONFIG).is_file():
        return None
    return make_plan(load(run / CONFIG), discover(), tokenizers=read_tokenizers(run)).max_length


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    named = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float) and "," in name}
    filters = {name.partition(",")[2] for name in named}
    return {name.partition(",")[0] if len(filters) == 1 else name: value for name, value in named.items()}


@frozen(eq=False)
class Asked:
    """A model, and the answers that it gives."""

    source: TextModel
    codec: TextCodec
    settings: HarnessSettings
    device: torch.device
    _cut: list[int] = field(factory=lambda: [0], init=False)

    def __attrs_post_init__(self) -> None:
        self.source.model.to(self.device)

    @property
    def cut(self) -> int:
        """Rows that lost their beginning so far."""
        return self._cut[0]

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of (context, continuation): ln p(continuation | context), and whether each of its tokens is the likeliest."""
        return self._judged([self._pair(context, continuation) for context, continuation in pairs])

    def texts(self, texts: Sequence[str]) -> list[float]:
        """ln p(text), in windows that score every token once, with as much before it as fits."""
        rows, owners = [], []
        for owner, text in enumerate(texts):
            ids = [self._start(), *self.codec.encode(text)]
            longest = self.settings.length or len(ids)
            for begin in range(1, len(ids), longest - 1):
                stop = min(begin + longest - 1, len(ids))
                first = max(0, stop - longest)
                rows.append((ids[first:begin], ids[begin:stop]))
                owners.append(owner)
        sums = [0.0] * len(texts)
        for owner, (nats, _) in zip(owners, self._judged(rows), strict=True):
            sums[owner] += nats
        return sums

    def answer(self, context: str, how: Mapping[str, Any]) -> str:
        """How a text goes on, up to the first of the texts that end it."""
        stops = [how["until"]] if isinstance(how.get("until"), str) else list(how.get("until") or ())
        tokens = int(how.get("max_gen_toks", DEFAULT_TOKENS))
        draws = bool(how.get("do_sample", False))
        ids = self.codec.encode(context) or [self._start()]
        if self.settings.length is not None and len(ids) + tokens > self.settings.length:
            self._cut[0] += len(ids) > max(self.settings.length - tokens, 1)
            ids = ids[-max(self.settings.length - tokens, 1) :]
        settings = GenerationSettings(tokens=tokens, temperature=float(how.get("temperature", 1.0)) if draws else 0.0, ids=self.source.ids)
        prompt = torch.tensor(list(ids), dtype=torch.long)
        with blaming(self.source.providers), calling(self.source.task_id, "generate"):
            row = self.source.task.generate(self.source.model, prompt, settings, torch.Generator().manual_seed(0))
            made = checked(prompt, row, settings)[len(ids) :]
        text = self.codec.decode(made)
        return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]

    def _start(self) -> int:
        start = self.settings.start if self.settings.start is not None else getattr(self.codec, "start", None)
        if start is None:
            raise UserError(
                "a task asks for a text that nothing precedes, and the vocabulary names no token that begins one: give --start ID"
            )
        return int(start)

    def _pair(self, context: str, continuation: str) -> Row:
        """Ids of both; spaces that end the context belong to the continuation, whose first token they are a part of in most
        vocabularies."""
        if not context:
            return [self._start()], list(self.codec.encode(continuation))
        bare = context.rstrip()
        before, whole = list(self.codec.encode(bare)), list(self.codec.encode(context + continuation))
        return (before, whole[len(before) :]) if before else ([self._start()], whole)

    def _judged(self, rows: Sequence[Row]) -> list[tuple[float, bool]]:
        """The score of every row; rows of similar length share a forward pass."""
        order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
        results: dict[int, tuple[float, bool]] = {}
        for first in range(0, len(order), self.settings.rows):
            places = order[first : first + self.settings.rows]
            fitted = [self._fitted(*rows[i]) for i in places]
            task: Any = self.source.task
            tensors = [torch.tensor([*given, *rest], dtype=torch.long, device=self.device) for given, rest in fitted]
            with blaming(self.source.providers), calling(self.source.task_id, "score"):
                scores = task.score(self.source.model, tensors, [len(given) for given, _ in fitted])
                fits = isinstance(scores, Sequence) and len(scores) == len(places)
                fits = fits and all(isinstance(each, tuple) and len(each) == 2 for each in scores)
                fits = fits and all(is_number(nats) and isinstance(best, bool) for nats, best in scores)
                expect(fits, scores, f"a pair of ln p and whether it is the likeliest for each of {len(places)} rows")
            results |= zip(places, scores, strict=True)
        return [results[i] for i in range(len(rows))]

    def _fitted(self, given: list[int], rest: list[int]) -> Row:
        """A row within the longest that the model takes; it loses its beginning.

        Raises:
            UserError: the part to judge alone is longer, or empty.
        """
        if not rest:
            raise UserError("a task asks for the likelihood of no token at all: its continuation is empty in this vocabulary")
        longest = self.settings.length
        if longest is not None and len(rest) >= longest:
            raise UserError(f"a task asks for {len(rest)} tokens at once, and rows have {longest}: allow longer ones by --length")
        if longest is None or len(given) + len(rest) <= longest:
            return given, rest
        self._cut[0] += 1
        return given[len(given) + len(rest) - longest :], rest
