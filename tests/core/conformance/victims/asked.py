"""What is asked once training is over: one right component of each sort, and the same with one thing wrong. B batch, T time, V ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stackwise import GenerationSettings, UserError
from victims import sound
from victims.broken import Labelled, of

Model = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Judging(Labelled):
    """Says which of two kinds a row is, of new rows too."""

    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"kind": model({"levels": self.seen(batch)})["kind"].sigmoid()}


class JudgingTogether(Judging):
    def seen(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["levels"] - batch["levels"].mean(0)


class Peeking(Judging):
    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"kind": model(self.prepare(batch, None, Generator()))["kind"].sigmoid()}


class Echoing(Judging):
    def predict(self, model: Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kind = super().predict(model, batch)["kind"]
        return {"kind": torch.where(batch["label"] > 0, kind, -kind) if "label" in batch else kind}


class Making(sound.Task):
    """Makes rows of four levels."""

    def generate_fields(self, model: Model, count: int, generator: Generator) -> dict[str, Tensor]:
        noise = torch.randn(count, 4, generator=generator)
        return {"levels": noise - model({"levels": noise})["levels"]}


class MakingByChance(Making):
    def generate_fields(self, model: Model, count: int, generator: Generator) -> dict[str, Tensor]:
        return {"levels": super().generate_fields(model, count, generator)["levels"] + torch.randn(count, 4)}


class MakingTurned(Making):
    def generate_fields(self, model: Model, count: int, generator: Generator) -> dict[str, Tensor]:
        return {"levels": super().generate_fields(model, count, generator)["levels"][..., None]}


class Writing:
    """Predicts the next of some ids, and goes on with them."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def get_spec(self) -> Any:
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        return {"tokens": batch["tokens"][:, :-1], "ahead": batch["tokens"][:, 1:]}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        ahead = batch["ahead"].long()
        nats = nn.functional.cross_entropy(outputs["logits"].float().flatten(0, 1), ahead.flatten(), reduction="sum")
        return nats, ahead.numel(), {}

    def draw(self, logits: Tensor, settings: GenerationSettings, generator: Generator) -> int:
        if not settings.temperature:
            return int(logits.argmax())
        return int(torch.multinomial((logits / settings.temperature).softmax(-1), 1, generator=generator))

    def generate(self, model: Model, prompt: Tensor, settings: GenerationSettings, generator: Generator) -> Tensor:
        if settings.hear is not None:
            raise UserError("hear: it tells nothing on the way")
        row = prompt
        for _ in range(settings.tokens):
            id = self.draw(model({"tokens": row[None]})["logits"][0, -1, : settings.ids].float(), settings, generator)
            row = torch.cat((row, torch.tensor([id])))
            if id in settings.stop:
                break
        return row

    def generate_rows(
        self, model: Model, prompts: Sequence[Tensor], settings: GenerationSettings, generators: Sequence[Generator]
    ) -> list[Tensor]:
        return [self.generate(model, prompt, settings, own) for prompt, own in zip(prompts, generators, strict=True)]

    def score(self, model: Model, rows: Sequence[Tensor], given: Sequence[int]) -> list[tuple[float, bool]]:
        return [self.judged(model, row, first) for row, first in zip(rows, given, strict=True)]

    def judged(self, model: Model, row: Tensor, first: int) -> tuple[float, bool]:
        nats = model({"tokens": row[None, :-1]})["logits"][0, first - 1 :].float().log_softmax(-1)
        rest = row[first:].long()
        return float(nats.gather(-1, rest[:, None]).sum()), bool((nats.argmax(-1) == rest).all())


class Swallowing(Writing):
    def generate(self, model: Model, prompt: Tensor, settings: GenerationSettings, generator: Generator) -> Tensor:
        return super().generate(model, prompt, settings, generator)[len(prompt) :]


class Deaf(Writing):
    """Takes `stop` and goes on."""

    def draw(self, logits: Tensor, settings: GenerationSettings, generator: Generator) -> int:
        return super().draw(logits, settings, generator)

    def generate(self, model: Model, prompt: Tensor, settings: GenerationSettings, generator: Generator) -> Tensor:
        return super().generate(model, prompt, GenerationSettings(tokens=settings.tokens, ids=settings.ids), generator)


class DrawingTogether(Writing):
    def generate_rows(
        self, model: Model, prompts: Sequence[Tensor], settings: GenerationSettings, generators: Sequence[Generator]
    ) -> list[Tensor]:
        return super().generate_rows(model, prompts, settings, [generators[0]] * len(prompts))


class ScoringEarly(Writing):
    """Asks for each token what was predicted one position later."""

    def judged(self, model: Model, row: Tensor, first: int) -> tuple[float, bool]:
        nats = model({"tokens": row[None]})["logits"][0, first:].float().log_softmax(-1)
        rest = row[first:].long()
        return float(nats.gather(-1, rest[:, None]).sum()), bool((nats.argmax(-1) == rest).all())


class ScoringInBits(Writing):
    def judged(self, model: Model, row: Tensor, first: int) -> tuple[float, bool]:
        nats, likeliest = super().judged(model, row, first)
        return nats / torch.log(torch.tensor(2.0)).item(), likeliest


class ScoringMeans(Writing):
    def judged(self, model: Model, row: Tensor, first: int) -> tuple[float, bool]:
        nats, likeliest = super().judged(model, row, first)
        return nats / (len(row) - first), likeliest


class Noting(sound.Folder):
    def notes(self, folder: Path) -> tuple[str, ...]:
        try:
            count = len(json.loads((folder / "tiny.json").read_text()))
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None
        return (f"{count} tensors have no comment",)


class NotingOneText(Noting):
    def notes(self, folder: Path) -> Any:
        return super().notes(folder)[0]


class NotingAloud(Noting):
    def notes(self, folder: Path) -> tuple[str, ...]:
        (folder / "notes.txt").write_text("asked")
        return super().notes(folder)


judging, judging_together, peeking, echoing = of(Judging), of(JudgingTogether), of(Peeking), of(Echoing)
making, making_by_chance, making_turned = of(Making), of(MakingByChance), of(MakingTurned)
writing, swallowing, deaf, drawing_together = of(Writing), of(Swallowing), of(Deaf), of(DrawingTogether)
scoring_early, scoring_in_bits, scoring_means = of(ScoringEarly), of(ScoringInBits), of(ScoringMeans)
noting, noting_one_text, noting_aloud = of(Noting), of(NotingOneText), of(NotingAloud)
