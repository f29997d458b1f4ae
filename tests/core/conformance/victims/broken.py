"""Artifacts that break one promise each. Shapes: B batch, T time, D width."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stackwise import BatchSpec, DataError, Evaluated, LinearOutput, PhaseEntered, RunFinished, RunStarted, StepDone, UserError
from victims import sound
from victims.sound_options import LEVELS


def of(made: Callable[..., Any]) -> Callable[..., Any]:
    """The factory of a class that takes the options only, and a weight where one is given."""

    def build(options: Any, context: Any, *extra: Any) -> Any:
        return made(options, *extra)

    return build


class Nothing:
    """An observer that does nothing, for options that are the victim."""

    def __init__(self, options: Any) -> None:
        pass

    def __call__(self, event: Any) -> None:
        pass


class WithoutPrepare:
    """A task whose method has another name."""

    def __init__(self, options: Any) -> None:
        self.get_spec = options.to_spec

    def prepares(self) -> None: ...
    def loss(self) -> None: ...


class Reseeding(sound.Head):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        torch.manual_seed(0)


class Deaf(sound.Transform):
    def apply_values(self, values: Mapping[str, float]) -> None:
        pass


class Entropic(sound.Embedding):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        generator = Generator()
        generator.seed()
        nn.init.normal_(self.linear.weight, generator=generator)


class Stateless(sound.Head):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.offset = torch.randn(1)

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"levels": super().forward(hidden)["levels"] + self.offset}


class Reading(sound.Adapter):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.gain = 1.0 + abs(self.weight.detach().sum().item())


class Unsqueezed(sound.Head):
    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"levels": self.linear(hidden)}


class Exploding(sound.Embedding):
    def forward(self, levels: Tensor) -> Tensor:
        return super().forward(levels) + torch.sqrt(0 * self.linear.weight.sum())  # d√x/dx at 0


class Misspelt(sound.Embedding):
    def forward(self, level: Tensor) -> Tensor:  # type: ignore[override]  # what is wrong with it
        return super().forward(level)


class Dividing(sound.Head):
    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"levels": hidden[..., 0] * (1 / 0)}


class Speechless(nn.Module):
    """A head that leaves its spec to its options."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(options.width, 1)


class Unused(sound.Embedding):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.spare = nn.Linear(1, options.width)


class Overwriting(sound.Adapter):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp_(min=0.0))


class Restless(sound.Head):
    """Drops out in every mode."""

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return super().forward(nn.functional.dropout(hidden, 0.5))


class Shifting(sound.Rack):
    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Any:
        hidden = super().forward(hidden, shift)
        return hidden, {"size": (hidden.square().mean(), 1.0)}


class Crosswise(sound.Rack):
    """Attends over the rows of the batch, as attention that takes time first does when it is given rows first."""

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        scores = torch.einsum("btd,ctd->tbc", hidden, hidden).softmax(-1)
        return super().forward(torch.einsum("tbc,ctd->btd", scores, hidden), shift)


class Foreseeing(sound.Rack):
    """Takes a mean over the whole row."""

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(hidden + hidden.mean(1, keepdim=True), shift)


class Blurring(sound.Rack):
    """Takes a running mean over whatever came before, of whichever document."""

    def forward(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
        return super().forward(hidden + hidden.cumsum(1) / places[:, None])


class SeeingPadding(sound.Rack):
    """Takes a mean over the whole row, padding included."""

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(hidden + hidden.mean(1, keepdim=True))


class Gated(sound.Rack):
    """A gate a block, in one vector as long as the rack is deep."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.gates = nn.Parameter(torch.ones(sum(stack.blocks for stack in options.stacks)))

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(hidden, shift) * self.gates.mean()


class LoudBlock(sound.Block):
    def forward(self, hidden: Tensor) -> Tensor:
        return 1.1 * super().forward(hidden)


class Loud(sound.Rack):
    block = LoudBlock


class Counting(sound.Rack):
    """Remembers outside of its state how often it was trained."""

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.calls = 0

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        self.calls += self.training
        return super().forward(hidden, shift) + (0.01 * self.calls if self.training else 0.0)


class Ascending(sound.Optimizer):
    sign = -1.0


class Stubborn(sound.Optimizer):
    """Reads its learning rate once."""

    def __init__(self, groups: Any, options: Any) -> None:
        super().__init__(groups, options)
        self.first = options.lr

    def move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        super().move(parameter, {**group, "lr": self.first})


class Forgetful(sound.Optimizer):
    """Corrects for the first steps by a counter of its own."""

    steps = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        self.steps += 1
        super().step()

    def move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        super().move(parameter, {**group, "lr": group["lr"] / (1 - 0.9**self.steps)})


class Shared(sound.Optimizer):
    """Divides the step by the number of parameters."""

    def move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        super().move(parameter, {**group, "lr": group["lr"] / len(group["params"])})


class Insisting(sound.Optimizer):
    """Wants a gradient of everyone."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad += 0.1 * parameter
                self.move(parameter, group)


class Clipping(sound.Optimizer):
    """Keeps nothing of a large gradient."""

    def move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        assert parameter.grad is not None
        if parameter.grad.abs().max() < 3:
            super().move(parameter, group)


def build_clipping(options: Any, context: Any, groups: Any) -> Any:
    return Clipping(sound.torch_groups(groups), options)


def build_looking_ahead(options: Any, context: Any, groups: Any) -> Any:
    if options.nesterov:
        _ = 1 / 0
    return sound.Optimizer(sound.torch_groups(groups), options)


def build_unavailable(options: Any, context: Any, groups: Any) -> Any:
    if options.nesterov:
        raise UserError("nesterov: the library 'ahead' is not installed") from ImportError("ahead")
    return sound.Optimizer(sound.torch_groups(groups), options)


def build_shuffled(options: Any, context: Any) -> Any:
    if options.shuffled:
        _ = 1 / 0
    return KnowingLoader(options, context)


class KnowingLoader(sound.Loader):
    """Knows its fields when it is built."""

    def get_batch_spec(self) -> BatchSpec:
        return BatchSpec(fields={"levels": LEVELS})


def build_squared(options: Any, context: Any, groups: Any) -> Any:
    return sound.Optimizer([{**group, "moments": {"momentum": 2}} for group in sound.torch_groups(groups)], options)


def build_insisting(options: Any, context: Any, groups: Any) -> Any:
    return Insisting(sound.torch_groups(groups), options)


def build_unnamed(options: Any, context: Any, groups: Any) -> Any:
    return sound.Optimizer([{"params": list(g.parameters.items()), **g.values} for g in groups], options)


def build_stubborn(options: Any, context: Any, groups: Any) -> Any:
    return Stubborn(sound.torch_groups(groups), options)


def build_ascending(options: Any, context: Any, groups: Any) -> Any:
    return Ascending(sound.torch_groups(groups), options)


def build_forgetful(options: Any, context: Any, groups: Any) -> Any:
    return Forgetful(sound.torch_groups(groups), options)


def build_shared(options: Any, context: Any, groups: Any) -> Any:
    return Shared(sound.torch_groups(groups), options)


class Chancy(sound.Loader):
    def __init__(self, options: Any, context: Any) -> None:
        super().__init__(options, context)
        self.row = int(torch.randint(1000, ()).item())


class Reusing(sound.Loader):
    """Hands out the one buffer it has."""

    buffer: Tensor | None = None

    def take(self, rows: int, length: int) -> dict[str, Tensor]:
        made = super().take(rows, length)["levels"]
        if self.buffer is None or self.buffer.shape != made.shape:
            self.buffer = torch.empty_like(made)
        return {"levels": self.buffer.copy_(made)}


class CountingTakes(sound.Loader):
    def state_dict(self) -> dict[str, Any]:
        return {"takes": self.row // 4}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.row = 4 * state["takes"]


class Rounding(sound.Loader):
    """Delivers even lengths only."""

    def one(self, row: int, length: int) -> Tensor:
        return super().one(row, length - length % 2)


class Everywhere(sound.Loader):
    def one(self, row: int, length: int) -> Tensor:
        return torch.rand(length, generator=Generator().manual_seed(self.context.seed + row))


class Overshooting(sound.Loader):
    def skip(self, rows: int, length: int) -> None:
        self.row += rows + 1


class Stamped(sound.Loader):
    def fingerprint(self) -> dict[str, Any]:
        return {"read at": time.time_ns()}


class Ending(sound.Loader):
    def take(self, rows: int, length: int) -> dict[str, Tensor]:
        if self.row + rows > 20:
            raise DataError("the stream is at its end")
        return super().take(rows, length)


class Padding(sound.Task):
    """Makes odd lengths even."""

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        ready = super().prepare(batch, moment, generator)
        return {**ready, "levels": nn.functional.pad(ready["levels"], (0, ready["levels"].shape[1] % 2))}


class Averaging(sound.Task):
    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        total, weight, metrics = super().loss(outputs, batch)
        return total / weight, weight, metrics


class Leaking(sound.Task):
    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        ready = super().prepare(batch, moment, generator)
        return {**ready, "ahead": batch["levels"][:, :-1]}


class Unshifted:
    """Compares what is predicted with the very tokens that are seen."""

    def __init__(self, options: Any) -> None:
        self.get_spec = options.to_spec

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        return {"tokens": batch["tokens"][:, :-1]}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        tokens = batch["tokens"]
        nats = nn.functional.cross_entropy(outputs["logits"].float().flatten(0, 1), tokens.flatten(), reduction="sum")
        return nats, tokens.numel(), {}


class LeakingDensity(sound.Density):
    """Levels as they are, shown to the model."""

    scale = 1.0

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        ready = super().prepare(batch, moment, generator)
        return {**ready, "ahead": ready["levels"]}


class Coarse(sound.Task):
    """Sums in the dtype that comes."""

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        error = outputs["levels"] - batch["ahead"].to(outputs["levels"].dtype)
        return error.square().sum(), error.numel(), {"absolute": (error.detach().float().abs().sum(), error.numel())}


class Doubling(sound.Task):
    """Counts an output that is said twice."""

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        levels: Any = outputs["levels"]
        return super().loss({"levels": 2 * levels.tensor() if isinstance(levels, LinearOutput) else levels}, batch)


doubling = of(Doubling)


class Unbiased(sound.Head):
    """Forgets the bias where it says its output."""

    def forward_linear(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"levels": (hidden @ self.linear.weight.T)[..., 0]}


unbiased = of(Unbiased)


class NormedTwice(sound.Rack):
    """Adds one in front of each part."""

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        return super().forward(hidden + 1, shift)

    def forward_blocks(self, hidden: Tensor, start: int, stop: int | None) -> Tensor:
        hidden = hidden + 1
        for block in [block for blocks in self.stacks.children() for block in blocks.children()][start:stop]:
            hidden = block(hidden)
        return hidden


normed_twice = of(NormedTwice)


class Choosy(nn.Linear):
    """An adapter that was never run the other way round."""

    def __init__(self, options: Any) -> None:
        super().__init__(options.narrow, options.wide)
        self.options = options

    def get_spec(self) -> Any:
        return self.options.to_spec()

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.options.side == "before" else super().forward(input) @ self.weight


class Labelled:
    """Says which of two kinds a row is. Its labels are a field of the batch that the model is not to see."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def get_spec(self) -> Any:
        return self.options.to_spec()

    def seen(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["levels"]

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        return {"levels": self.seen(batch), "label": batch["label"]}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        nats = nn.functional.binary_cross_entropy_with_logits(outputs["kind"].float(), batch["label"].float(), reduction="sum")
        return nats, len(batch["label"]), {}


class Telling(Labelled):
    """Puts the label among what is seen."""

    def seen(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["levels"] + batch["label"][:, None]


class Rolling(sound.Task):
    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        ready = super().prepare(batch, moment, generator)
        return {**ready, "levels": ready["levels"] + 0.1 * torch.randn(ready["levels"].shape)}


class Grasping(sound.Transform):
    def __call__(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        batch["levels"].add_(1.0)
        return super().__call__(batch, moment, generator)


class Miscast(sound.Transform):
    def __call__(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        ready = super().__call__(batch, moment, generator)
        return {**ready, "noisy": ready["noisy"].long()}


class Loaded(sound.LowRank):
    def __init__(self, options: Any, weight: Tensor) -> None:
        super().__init__(options, weight)
        nn.init.normal_(self.up)


class Halved(sound.LowRank):
    def merged(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down / 2


class Idle(sound.LowRank):
    def __init__(self, options: Any, weight: Tensor) -> None:
        super().__init__(options, weight)
        self.spare = nn.Parameter(torch.zeros(2))


class Warm(sound.Reaction):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.factor = 0.5


class Sinking(sound.Reaction):
    def halved(self) -> str | None:
        self.factor, self.waited = self.factor / 2, 0
        return "no lower loss"


class Chatty(sound.Reaction):
    def halved(self) -> str | None:
        return super().halved() or "still no lower loss"


class Amnesic(sound.Reaction):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "waited": 0}


class Closed(Nothing):
    def __call__(self, event: Any) -> None:
        if not isinstance(event, RunStarted | PhaseEntered | StepDone | Evaluated | RunFinished):
            raise TypeError(f"{type(event).__name__} is not an event")


class Greedy(Nothing):
    def __call__(self, event: Any) -> None:
        if isinstance(event, Evaluated):
            event.metrics.pop("loss")  # type: ignore[attr-defined]  # what is wrong with it


class Turning(sound.Folder):
    def write(self, model: Any, folder: Any, origin: Any, tokenizer: Any) -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data.flip(0)
        super().write(model, folder, origin, tokenizer)
        for parameter in model.parameters():
            parameter.data = parameter.data.flip(0)


class Trusting(sound.Folder):
    def read(self, folder: Any) -> Any:
        return self.take(json.loads((folder / "tiny.json").read_text()))


nothing, without_prepare = of(Nothing), of(WithoutPrepare)
reseeding, stateless, unsqueezed = of(Reseeding), of(Stateless), of(Unsqueezed)
entropic, exploding, unused, reading = of(Entropic), of(Exploding), of(Unused), of(Reading)
gated, loud, counting = of(Gated), of(Loud), of(Counting)
misspelt, dividing, speechless = of(Misspelt), of(Dividing), of(Speechless)
labelled, telling, unshifted, leaking_density = of(Labelled), of(Telling), of(Unshifted), of(LeakingDensity)
overwriting, restless, choosy = of(Overwriting), of(Restless), of(Choosy)
crosswise, foreseeing, blurring, seeing_padding, coarse = of(Crosswise), of(Foreseeing), of(Blurring), of(SeeingPadding), of(Coarse)
deaf, grasping, miscast, shifting = of(Deaf), of(Grasping), of(Miscast), of(Shifting)
padding, averaging, leaking, rolling = of(Padding), of(Averaging), of(Leaking), of(Rolling)
loaded, halved, idle = of(Loaded), of(Halved), of(Idle)
warm, sinking, chatty, amnesic = of(Warm), of(Sinking), of(Chatty), of(Amnesic)
closed, greedy = of(Closed), of(Greedy)
turning, trusting = of(Turning), of(Trusting)
