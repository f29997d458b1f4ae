"""What a task, a loader or a format may be asked beside training: predictions, new rows, continuations, likelihoods, notes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Generator, Tensor

from stackwise.conformance import bench, partners
from stackwise.conformance.building import artifact_of
from stackwise.conformance.formats import written
from stackwise.conformance.subject import ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.formats import NotesFolders
from stackwise.contracts.generation import Generates, GeneratesFields, GeneratesRows, GenerationSettings, Scores
from stackwise.contracts.prediction import Predicts, ReadsRows
from stackwise.contracts.specs import BatchSpec, Reading, TaskSpec
from stackwise.contracts.tokenizers import HasTokenizer
from stackwise.errors import UserError

MADE = 3
"""Rows and tokens that are asked for."""


def check_predicts(subject: Subject) -> None:
    """A task that predicts gives one entry per row, which depends on that row alone, and reads no target.

    Usual cause: a mean over the batch; a `label` that is read though new rows have none; a key that nobody delivers.
    """
    task: Any = bench.task_of(subject)
    if not isinstance(task, Predicts):
        raise NotApplicable("it has no `predict`")
    model, rows = bench.model_around(subject).eval(), bench.rows(subject)
    kept = bench.copy_of(rows)
    predictions = _predicted(task, model, rows)
    must(bench.same(rows, kept), "predict changed the batch that it was given")
    for name, tensor in predictions.items():
        must(not tensor.is_floating_point() or bool(tensor.isfinite().all()), f"'{name}' is not finite on ordinary rows")
    for part in (slice(None, ROWS // 2), slice(ROWS // 2, None)):
        alone = _predicted(task, model, {name: tensor[part] for name, tensor in rows.items()})
        must(_close(alone, {name: tensor[part] for name, tensor in predictions.items()}), "a row gets another prediction beside other rows")
    spec = bench.boundaries(subject).task
    for target in [name for name in rows if name not in spec.inputs]:
        try:
            without = _predicted(task, model, {name: tensor for name, tensor in rows.items() if name != target})
        except UserError:
            continue  # it is no target: what is predicted follows from it
        must(_close(without, predictions), f"its predictions change without '{target}', which new rows may lack")


def _predicted(task: Any, model: Any, rows: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    with torch.no_grad():
        predictions = task.predict(model, rows)
    must(
        isinstance(predictions, Mapping) and bool(predictions),
        f"predict gives {type(predictions).__name__}: it gives a map from names to tensors",
    )
    count = len(next(iter(rows.values())))
    for name, tensor in predictions.items():
        fits = isinstance(tensor, Tensor) and tensor.dim() > 0 and len(tensor) == count
        form = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        must(fits, f"predict gives {form} as '{name}' for {count} rows: an entry a row")
    return dict(predictions)


def check_makes_rows(subject: Subject) -> None:
    """A task that makes rows makes as many as are asked for, in the form that its spec gives them, by its own generator alone.

    Usual cause: `torch.randn` without `generator=`; an image with its channels first where the data have them last.
    """
    task: Any = bench.task_of(subject)
    if not isinstance(task, GeneratesFields):
        raise NotApplicable("it has no `generate_fields`")
    model, spec = bench.model_around(subject).eval(), bench.boundaries(subject).task

    def made(seed: int, chance: int, count: int = MADE) -> dict[str, Tensor]:
        with bench.seeded(chance), torch.no_grad():
            rows: dict[str, Tensor] = task.generate_fields(model, count, Generator().manual_seed(seed))
        must(isinstance(rows, dict) and bool(rows), f"generate_fields gives {type(rows).__name__}: it gives a dict from fields to tensors")
        for name, tensor in rows.items():
            must(isinstance(tensor, Tensor) and tensor.dim() > 0, f"generate_fields gives '{name}' as {type(tensor).__name__}")
            must(len(tensor) == count, f"generate_fields gives {len(tensor)} rows of '{name}', and {count} are asked for")
            must(not tensor.is_floating_point() or bool(tensor.isfinite().all()), f"'{name}' is not finite")
            if (field := spec.batch.get(name)) is not None:
                sizes = zip(field.dims, tensor.shape, strict=False)
                fits = tensor.dim() == len(field.dims) and all(size == dim for dim, size in sizes if isinstance(dim, int))
                must(fits, f"generate_fields gives '{name}' of shape {tuple(tensor.shape)}, and in the data it is {field}")
        return rows

    first = made(SEED, 0)
    must(bench.same(first, made(SEED, 1)), "with an equal generator it makes other rows: every draw comes from the generator")
    must(not bench.same(first, made(SEED + 1, 0)), "with another generator it makes the same rows")
    made(SEED, 0, 1)


def check_continues_prompts(subject: Subject) -> None:
    """A task that generates returns the prompt with what was asked for after it, drawn by its generator alone; of several prompts each
    as if it were alone; it honours `stop` and `hear`, or refuses them.

    Usual cause: only what is new is returned; one generator for all rows; a token that ends it is cut off.
    """
    task: Any = bench.task_of(subject)
    if not isinstance(task, Generates):
        raise NotApplicable("it has no `generate`")
    model, ids = bench.model_around(subject).eval(), _ids(bench.boundaries(subject).task)
    prompt = torch.arange(MADE) % ids
    settings = GenerationSettings(tokens=MADE, ids=ids)

    def made(seed: int, chance: int = 0, **other: Any) -> list[int]:
        with bench.seeded(chance), torch.no_grad():
            own = GenerationSettings(**{"tokens": MADE, "ids": ids, **other})
            return _continued(task.generate(model, prompt, own, Generator().manual_seed(seed)), prompt, own)

    try:
        first = made(SEED)
    except UserError as error:
        raise NotApplicable(f"it refuses a prompt of {MADE} ids: {error}") from error
    must(len(first) == 2 * MADE, f"{len(first) - MADE} tokens follow the prompt, and {MADE} are asked for")
    must(first == made(SEED, 1), "with an equal generator it gives other tokens: every draw comes from the generator")
    must(made(SEED, temperature=0.0) == made(SEED + 1, temperature=0.0), "at temperature 0 it draws at random")
    _check_ends(made, first)
    if isinstance(task, GeneratesRows):
        prompts, seeds = [prompt, prompt.flip(0)[:2], prompt.flip(0)], (SEED, SEED + 1, SEED + 2)
        with torch.no_grad():
            together = task.generate_rows(model, prompts, settings, [Generator().manual_seed(seed) for seed in seeds])
            alone = [task.generate(model, row, settings, Generator().manual_seed(seed)) for row, seed in zip(prompts, seeds, strict=True)]
        equal = len(together) == len(alone) and all(map(torch.equal, together, alone))
        must(equal, "generate_rows gives a prompt other tokens than generate does alone, with an equal generator")


def _continued(row: Any, prompt: Tensor, settings: GenerationSettings) -> list[int]:
    must(isinstance(row, Tensor) and row.dim() == 1, "generate gives one row of token ids")
    must(row[: len(prompt)].tolist() == prompt.tolist(), "generate gives a row that does not begin with the prompt")
    added: list[int] = row[len(prompt) :].tolist()
    must(all(0 <= id < (settings.ids or 0) for id in added), f"generate gives ids outside [0, {settings.ids}), the settings' `ids`")
    return [int(id) for id in row.tolist()]


def _check_ends(made: Any, first: Sequence[int]) -> None:
    """A token that ends the continuation is its last, whether `stop` or `hear` ends it; `hear` is called with each token as it is drawn."""
    ends, heard = first[MADE], []

    def hear(prompt: int, id: int) -> bool:
        heard.append((prompt, id))
        return id == ends

    for name, how in (("stop", {"stop": (ends,)}), ("hear", {"hear": hear})):
        try:
            row = made(SEED, **how)
        except UserError:
            continue
        must(row == list(first[: MADE + 1]), f"`{name}` ends it at the first token {ends}, which is its last: it gives {row[MADE:]}")
    must(not heard or heard == [(0, ends)], f"`hear` is called with (0, token) for each token: it heard {heard}")


def check_scores(subject: Subject) -> None:
    """A task that scores gives probabilities: those of all tokens that may come next add up to 1, those of a text are the product of
    those of its tokens, and a row is scored alike whatever stands beside it.

    Usual cause: the probability of the token before; padding that is counted; bits in place of nats.
    """
    task: Any = bench.task_of(subject)
    if not isinstance(task, Scores):
        raise NotApplicable("it has no `score`")
    model, spec = bench.model_around(subject).eval(), bench.boundaries(subject).task
    ids = _ids(spec)
    row = torch.arange(2 * MADE) % ids

    def scored(rows: Sequence[Tensor], given: Sequence[int]) -> list[tuple[float, bool]]:
        with torch.no_grad():
            scores = list(task.score(model, rows, given))
        must(len(scores) == len(rows), f"{len(scores)} scores come for {len(rows)} rows")
        return scores

    follow = scored([torch.cat((row, torch.tensor([id]))) for id in range(ids)], [len(row)] * ids)
    total = float(torch.tensor([nats for nats, _ in follow], dtype=torch.float64).exp().sum())
    fits = total <= 1 + 1e-4 if spec.beyond else abs(total - 1) <= 1e-4
    must(fits, f"the probabilities of the {ids} tokens that may come next add up to {total:.6g}")
    best = max(range(ids), key=lambda id: follow[id][0])
    must(
        [id for id in range(ids) if follow[id][1]] == [best],
        "score must mark the most likely of the tokens that may come next, and no other",
    )
    (whole, _), (first, _), (second, _) = (scored([part], [given])[0] for part, given in ((row, 1), (row[:MADE], 1), (row, MADE)))
    must(abs(whole - first - second) <= 1e-4 * max(1.0, abs(whole)), f"ln p of a row is {whole:.6g}, and of its parts {first + second:.6g}")
    ((beside, _), _) = scored([row[:MADE], row], [1, 2])
    must(abs(beside - first) <= 1e-4 * max(1.0, abs(first)), f"ln p of a row is {first:.6g} alone and {beside:.6g} beside a longer one")


def _ids(spec: TaskSpec) -> int:
    """How many ids a row may hold.

    Raises:
        NotApplicable: no field of its batch is one of bounded ids.
    """
    bounds = [int(field.bounds[1]) for field in spec.batch.values() if field.bounds is not None and not field.dtype.startswith("float")]
    if not bounds:
        raise NotApplicable("no field of its batch says by `bounds` which ids there are")
    return min(bounds)


def check_reads_rows(subject: Subject) -> None:
    """A loader that reads rows of another file gives them in order, whatever number at a time, in the form of its batches, without
    targets; and it tells one plain map for each prediction.

    Usual cause: a rest of the file that is left out; a label that is asked for; tensors in what is told.
    """
    options = subject.options()
    if not isinstance(options, ReadsRows):
        raise NotApplicable("its options have no `rows_of` and `tell`")
    file = _file_of(options)
    if isinstance(options, HasTokenizer) and (tokenizer := options.make_tokenizer([options])) is not None:
        options = options.with_tokenizer(tokenizer)
    try:
        whole = _joined(options.rows_of(file, 10**6))
    except UserError as error:
        raise NotApplicable(f"these options read no other file: {error}") from error
    must(bench.same(whole, _joined(options.rows_of(file, MADE))), f"read {MADE} at a time, the rows of a file are others than read at once")
    spec = options.to_spec()
    assert isinstance(spec, BatchSpec)
    for name, tensor in whole.items():
        must(name in spec.fields, f"it reads '{name}', and its spec has {', '.join(spec.fields)}")
        field = spec.fields[name]
        form = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        kind = tensor.dtype == partners.dtype_of(field) or field.dtype in ("floating", "integer")
        must(kind and tensor.dim() == len(field.dims), f"'{name}' is {form}, and {field} is promised")
    count = len(next(iter(whole.values())))
    values = options.tell({"score": torch.linspace(0, 1, count)})
    must(len(values) == count, f"it tells {len(values)} rows of {count} predictions")
    try:
        json.dumps(list(values), allow_nan=False)
    except (TypeError, ValueError) as error:
        must(False, f"what it tells is not plain: {error}")


def _file_of(options: Any) -> str:
    """A file that the loader reads itself, as it says by `readings`.

    Raises:
        NotApplicable: it names none.
    """
    readings: Iterable[Reading] = getattr(options, "readings", lambda split, whole: ())("train", False)
    files = [reading.data for reading in readings if Path(reading.data).is_file()]
    if not files:
        raise NotApplicable("its options name no file by `readings`, so that there is none to read")
    return files[0]


def _joined(batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    parts = list(batches)
    must(bool(parts), "it gives no rows of a file that it reads")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_notes(subject: Subject) -> None:
    """What a format notes of a folder is sentences, the same each time, and leaves the folder as it was; of damaged files too.

    Usual cause: one text in place of a tuple of them; a file that need not be there; a cache beside the weights.
    """
    form: Any = artifact_of(subject)
    if not isinstance(form, NotesFolders):
        raise NotApplicable("it has no `notes`")
    with TemporaryDirectory() as place:
        folder = written(form, Path(place))
        before = _files(folder)
        notes = form.notes(folder)
        plain = isinstance(notes, tuple) and all(isinstance(note, str) and note.strip() for note in notes)
        must(plain, f"notes gives {notes!r}: it gives a tuple of sentences")
        must(notes == form.notes(folder), "notes says something else the second time")
        must(_files(folder) == before, "notes changed the folder")
        for name, content in before.items():
            (folder / name).write_bytes(content[: len(content) // 2])
        try:
            form.notes(folder)
        except UserError:
            return
        except Exception as error:
            must(False, f"for files that are cut short, notes raises {type(error).__name__}: {error}, not a UserError")


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


_close_tensors = partial(torch.allclose, rtol=1e-4, atol=1e-5)


def _close(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].shape == right[name].shape and _close_tensors(left[name].double(), right[name].double()) for name in left
    )
