"""The provider of `wrong_answers`, with all that a component may offer beside: schedules, observers, formats and starters, what a model is
asked once it is trained, what a loader says of its data and its text, and what answers rightly at first."""

from __future__ import annotations

from wrong_answers import CODE

MORE = '''
from stackwise import EpochSize, LinearOutput, Reading, Starter, StoredModel, Tokenizer, TranslatedConfig, scheduled

import os
from attrs import evolve

answered = at


def at(options, place, right):
    """The right answer, but at the one place that the options name, or the environment: so a run that is right is asked wrongly later."""
    wrong, _, answer = os.environ.get("ODD", "").partition("=")
    return answered(Options(at=place, answer=answer) if wrong == place else options, place, right)


RAW = dict(RackOptions=RackOptions, TaskOptions=TaskOptions, LoaderOptions=LoaderOptions, OptimizerOptions=OptimizerOptions)


@frozen(kw_only=True)
class RackOptions(RAW["RackOptions"]):
    def __attrs_post_init__(self):
        at(self, "options", None)

    def to_spec(self):
        return evolve(super().to_spec(), losses=("balance",)) if self.at == "reported" else super().to_spec()


@frozen(kw_only=True)
class TaskOptions(RAW["TaskOptions"]):
    pace: float = scheduled(1.0, doc="follows time")

    def to_spec(self):
        return evolve(super().to_spec(), linear_outputs=("levels",))


@frozen(kw_only=True)
class OptimizerOptions(RAW["OptimizerOptions"]):
    lr: float = scheduled(0.01, doc="size of a step")

    def to_spec(self):
        elements = {"state_elements": lambda shape: at(self, "state_elements", 0)}
        if self.at == "named_state_elements":
            elements["named_state_elements"] = lambda name, shape: at(self, "named_state_elements", 0)
        return OptimizerSpec(**elements, step_flops=lambda name, shape: at(self, "step_flops", 1))


class Asked(Task):
    def apply_values(self, values):
        at(self.options, "apply_values", None)

    def prepare_evaluation(self, batch, moment, generator):
        return at(self.options, "prepare_evaluation", self.prepare(batch, moment, generator))

    def loss(self, outputs, batch):
        levels = outputs["levels"]
        return super().loss({"levels": levels.tensor() if isinstance(levels, LinearOutput) else levels}, batch)

    def generate(self, model, prompt, settings, generator):
        return at(self.options, "generate", torch.cat((prompt, torch.zeros(settings.tokens, dtype=torch.long))))

    def generate_rows(self, model, prompts, settings, generators):
        rows = [torch.cat((prompt, torch.zeros(settings.tokens, dtype=torch.long))) for prompt in prompts]
        return at(self.options, "generate_rows", rows)

    def generate_fields(self, model, count, generator):
        return at(self.options, "generate_fields", {"levels": torch.zeros(count, 4)})

    def predict(self, model, batch):
        return at(self.options, "predict", {"levels": model({"levels": batch["levels"]})["levels"]})


    def score(self, model, rows, given):
        pair = at(self.options, "score.nats", -1.0), at(self.options, "score.likeliest", True)
        return at(self.options, "score", [at(self.options, "score.pair", pair)] * len(rows))


class LinearHead(Head):
    def forward_linear(self, hidden):
        return at(self.options, "forward_linear", {"levels": self.linear(hidden)[..., 0]})


class PartRack(Rack):
    def __init__(self, options):
        super().__init__(options)
        self.spec = options.to_spec() if options.at == "reported" else self.spec

    def forward(self, hidden):
        hidden = super().forward(hidden)
        if self.options.at != "reported":
            return hidden
        return hidden, at(self.options, "reported", {"balance": (hidden.square().sum(), hidden.numel())})

    def forward_blocks(self, hidden, start, stop):
        for block in [block for blocks in self.stacks.values() for block in blocks][start:stop]:
            hidden = hidden + block(hidden)
        return at(self.options, "forward_blocks", hidden)


class Codec:
    def __init__(self, options):
        self.options, self.start = options, at(options, "start", None)

    def encode(self, text):
        return at(self.options, "encode", [1] * len(text))

    def decode(self, ids):
        return at(self.options, "decode", "o" * len(ids))


@frozen(kw_only=True)
class LoaderOptions(RAW["LoaderOptions"]):
    def readings(self, split, whole):
        return at(self, "readings", [Reading("odd data", 0.0 if split == "train" else 0.5, 0.5 if split == "train" else 1.0, order="rows")])

    def epoch_size(self, split):
        return at(self, "options.epoch_size", None if self.at == "count_epoch" else EpochSize(rows=12))

    def count_epoch(self, split):
        return at(self, "count_epoch", EpochSize(rows=12))

    def rows_of(self, file, rows):
        return at(self, "rows_of", iter([{"levels": torch.zeros(3, 4)}]))

    def tell(self, predictions):
        return at(self, "tell", [{"levels": row.tolist()} for row in predictions["levels"]])

    def text_codec(self, fingerprint):
        return at(self, "text_codec", Codec(self))


@frozen(kw_only=True)
class TokenizerOptions(LoaderOptions):
    def tokenizer_settings(self):
        return at(self, "tokenizer_settings", {"size": 3})

    def make_tokenizer(self, sources):
        return at(self, "make_tokenizer", Tokenizer(vocabulary="odd", files={"odd.txt": b"odd"}))

    def with_tokenizer(self, tokenizer):
        return at(self, "with_tokenizer", self)

    @staticmethod
    def codec_of(tokenizer):
        return at(Options(), "codec_of", Codec(Options()))


class Skipping(Loader):
    def take(self, rows, length):
        batch = super().take(rows, length)
        return {**batch, "levels": at(self.options, "field", batch["levels"])} if self.options.at == "field" else batch

    def fingerprint(self):
        return {"rows": "endless", **({"vocabulary": "odd"} if isinstance(self.options, TokenizerOptions) else {})}

    def skip(self, rows, length):
        self.row += rows
        return at(self.options, "skip", None)


class Evaluating(Optimizer):
    def eval(self):
        at(self.options, "eval", None)

    def train(self):
        at(self.options, "train", None)


class Stopping(Reaction):
    def __init__(self, options):
        super().__init__(options)
        self.stops = None

    def watch(self, step, metrics):
        if step == 2:
            self.stops = at(self.options, "stops", None)
        self.factor = at(self.options, "factor", 1.0)
        return super().watch(step, metrics)


@frozen(kw_only=True)
class ScheduleOptions(Options):
    def fingerprint(self):
        return at(self, "fingerprint", {"sha256": "0123"})


class Slope:
    def __init__(self, options):
        self.options = options

    def value(self, step, window):
        return at(self.options, "value", 0.01)


class Watching:
    def __init__(self, options):
        self.options = options

    def __call__(self, event):
        at(self.options, "call", None)

    def meet(self, facts):
        at(self.options, "meet", None)

    def leave(self, status):
        at(self.options, "leave", None)

    def state_dict(self):
        return at(self.options, "state_dict", {"seen": 1})

    def load_state_dict(self, state):
        at(self.options, "load_state_dict", None)


class Folder:
    def __init__(self, options):
        self.options = options

    def example(self):
        model = {"embedding": {"use": "odd.one"}, "rack": {"use": "odd.one", "stacks": [{"base": 2}]}, "head": {"use": "odd.one"}}
        return at(self.options, "format.example", model)

    def recognises(self, folder):
        return at(self.options, "format.recognises", (folder / "odd.pt").is_file())

    def notes(self, folder):
        return at(self.options, "format.notes", ("all is odd",))

    def read(self, folder):
        tensors = torch.load(folder / "odd.pt")
        return at(self.options, "format.read", StoredModel(model=self.example(), tensors=at(self.options, "format.tensors", tensors)))

    def write(self, model, folder, origin, tokenizer):
        torch.save(dict(model.named_parameters()), folder / "odd.pt")
        at(self.options, "format.write", None)

    def translates(self, document):
        return at(self.options, "format.translates", "odd" in document)

    def translate(self, document):
        text, dropped = at(self.options, "format.text", document["odd"]), at(self.options, "format.dropped", ("odd: it is",))
        return at(self.options, "format.translate", TranslatedConfig(text=text, dropped=dropped))


task, optimizer, reaction = map(of, (Asked, Evaluating, Stopping))
head, rack, loader, schedule, observer = map(of, (LinearHead, PartRack, Skipping, Slope, Watching))


def folder(options, context):
    return at(options, "format.factory", Folder(options))



KINDS = {
    **KINDS, "schedules": ("ScheduleOptions", "schedule"), "observers": ("Options", "observer"), "formats": ("Options", "folder"),
}
for kind, (options, factory) in KINDS.items():
    globals()[f"stackwise_{kind}"] = hook(kind, options, factory)


@hookimpl
def stackwise_loaders():
    pairs = {"one": "LoaderOptions", "text": "TokenizerOptions"}
    return [Component(name=name, options=f"fake_odd:{options}", factory="fake_odd:loader") for name, options in pairs.items()]


def __getattr__(name):
    if name == "TEXT":
        return at(Options(), "starter.text", 'rows: "odd.csv"')
    if name == "ROWS":
        return at(Options(), "starter.files", b"1,2")
    raise AttributeError(name)


@hookimpl
def stackwise_starters():
    return [Starter(name="odd", text="fake_odd:TEXT", files={"odd.csv": "fake_odd:ROWS"})]
'''

BESIDE = CODE + MORE

RUN: dict[tuple[str, str], tuple[str, ...]] = {
    ("task", "prepare_evaluation"): ("none", "text", "number", "shape", "empty", "raises"),
    ("task", "apply_values"): ("raises",),
    ("head", "forward_linear"): ("none", "text", "number", "shape", "empty", "raises"),
    ("rack", "forward_blocks"): ("none", "text", "number", "shape", "raises"),
    ("loader", "readings"): ("none", "text", "number", "raises"),
    ("loader", "options.epoch_size"): ("text", "number", "raises"),
    ("loader", "count_epoch"): ("text", "number", "raises"),
    ("loader", "skip"): ("raises",),
    ("text", "tokenizer_settings"): ("text", "number", "raises"),
    ("text", "make_tokenizer"): ("text", "number", "raises"),
    ("text", "with_tokenizer"): ("none", "text", "raises"),
    ("rack", "options"): ("raises",),
    ("rack", "reported"): ("none", "text", "number", "shape", "empty", "raises"),
    ("optimizer", "state_elements"): ("none", "text", "raises"),
    ("optimizer", "named_state_elements"): ("none", "text", "raises"),
    ("optimizer", "step_flops"): ("none", "text", "raises"),
    ("optimizer", "eval"): ("raises",),
    ("optimizer", "train"): ("raises",),
    ("reaction", "stops"): ("number", "shape"),
    ("schedule", "factory"): ("none", "text", "raises"),
    ("schedule", "value"): ("none", "text", "shape", "nan", "raises"),
    ("schedule", "fingerprint"): ("none", "text", "number", "shape", "raises"),
    ("observer", "factory"): ("none", "text", "raises"),
    ("observer", "state_dict"): ("none", "text", "number", "raises"),
    ("observer", "load_state_dict"): ("raises",),
}
"""Component and callback → the wrong answers of it that end a run, or the branch from its middle."""

LATER: dict[tuple[str, str, int], tuple[str, ...]] = {
    ("task", "prepare", 4): ("none", "text", "number", "shape", "raises"),
    ("task", "loss", 4): ("none", "text", "number", "shape", "raises"),
    ("task", "prepare_evaluation", 1): ("none", "text", "number", "shape", "raises"),
    ("task", "total", 4): ("none", "text", "number", "shape", "raises"),
    ("task", "weight", 4): ("none", "text", "shape", "raises"),
    ("task", "metrics", 4): ("none", "text", "number", "shape", "raises"),
    ("task", "state_dict", 1): ("none", "text", "number", "raises"),
    ("task", "apply_values", 4): ("raises",),
    ("loader", "take", 4): ("none", "text", "number", "shape", "empty", "raises"),
    ("loader", "field", 4): ("none", "text", "number", "shape"),
    ("loader", "state_dict", 4): ("none", "text", "number", "raises"),
    ("embedding", "forward", 4): ("none", "text", "number", "shape", "raises"),
    ("rack", "forward", 4): ("none", "text", "number", "shape", "raises"),
    ("rack", "reported", 6): ("none", "text", "number", "shape", "empty", "raises"),
    ("head", "forward_linear", 4): ("none", "text", "number", "shape", "empty", "raises"),
    ("reaction", "factor", 4): ("none", "text", "shape", "nan"),
    ("reaction", "watch", 4): ("number", "shape", "raises"),
    ("reaction", "state_dict", 1): ("none", "text", "number", "raises"),
    ("optimizer", "step", 4): ("raises",),
    ("observer", "state_dict", 1): ("none", "text", "number", "raises"),
}
"""Component, callback and number of right answers → the wrong ones behind them, when a run has long begun."""

TOLD = {("observer", callback): ("raises",) for callback in ("call", "meet", "leave")}
"""Those that a run survives: the observer is dropped, and who it was is said."""

AFTER: dict[tuple[str, str], tuple[str, ...]] = {
    ("task", "generate"): ("none", "text", "number", "shape", "raises"),
    ("task", "generate_rows"): ("none", "text", "number", "shape", "empty", "raises"),
    ("task", "generate_fields"): ("none", "text", "number", "shape", "empty", "raises"),
    ("task", "predict"): ("none", "text", "number", "shape", "empty", "raises"),
    ("task", "score"): ("none", "text", "number", "shape", "empty", "raises"),
    ("task", "score.pair"): ("none", "text", "number", "empty"),
    ("task", "score.nats"): ("none", "text", "nan", "shape"),
    ("task", "score.likeliest"): ("none", "text", "number"),
    ("loader", "rows_of"): ("none", "text", "number", "raises"),
    ("loader", "tell"): ("none", "text", "number", "raises"),
    ("loader", "text_codec"): ("text", "number", "raises"),
    ("loader", "start"): ("text", "shape", "raises"),
    ("text", "codec_of"): ("none", "text", "number", "raises"),
    ("loader", "encode"): ("none", "text", "number", "raises"),
    ("loader", "decode"): ("none", "number", "raises"),
}
"""Those that show once the model is asked."""

FORMAT: dict[str, tuple[str, ...]] = {
    "factory": ("none", "text", "raises"),
    "recognises": ("none", "text", "raises"),
    "notes": ("none", "number", "raises"),
    "read": ("none", "text", "number", "raises"),
    "tensors": ("none", "text"),
    "write": ("raises",),
    "translates": ("none", "text", "number", "raises"),
    "translate": ("none", "text", "number", "empty", "raises"),
    "text": ("none", "number", "text"),
    "dropped": ("none", "text", "number"),
}
"""Those of a format."""

STARTER: dict[str, tuple[str, ...]] = {"text": ("none", "text", "number", "raises"), "files": ("none", "number", "shape", "raises")}
"""Those of a starter."""
