"""The configs of stack-wise: what of a YAML file has a meaning here, and the name of every key that has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from attrs import define, field

from stackwise import TranslatedConfig
from stackwise_providers_transformer.predecessor.keys import ELSEWHERE, Old, number
from stackwise_providers_transformer.predecessor.phases import phases_of

SECTIONS = ("model", "training", "data", "schedule", "task")
PRESETS = {"bert_style": {"attention": "bidirectional"}, "gpt_style": {"attention": "causal"}, "efficient_gqa": {}}
OPTIMIZERS = {
    "adamw": "optim.adamw",
    "adam": "optim.adamw",
    "sgd": "optim.sgd",
    "muon": "optim.muon",
    "lion": "optim.lion",
    "adafactor": "optim.adafactor",
}
ITS_OWN = {"adamw": ("betas", "eps"), "adam": ("betas", "eps"), "lion": ("betas",), "sgd": ("momentum", "nesterov")}
CURVES = {"linear": "linear", "cosine": "cosine"}


@define
class Translation:
    """The new config in the making."""

    old: Old
    sections: dict[str, Any] = field(factory=dict)

    def run(self) -> None:
        """Every section in turn."""
        model, training, data = (self.old.section(name) for name in ("model", "training", "data"))
        rates = _mask_rates(training)
        self.sections["task"] = self._task(model, rates)
        self.sections["data"] = {
            "sources": {"text": {"use": "data.python-stdlib"}},
            "batch_size": training.take("batch_size", 32),
            "seq_len": training.take("seq_len") or data.take("max_length") or 128,
        }
        data.drop("max_length", "training.seq_len says it")
        self.sections["model"] = _model(model)
        self.sections["optimizer"] = _optimizer(training.section("optimizer"))
        plan = phases_of(self.old, training, self.sections["model"]["rack"]["stacks"])
        self.sections["run"] = {"horizon": plan.horizon, "device": "auto"}
        if (interval := training.take("save_interval")) is not None:
            self.sections["run"]["checkpoint"] = {"every": f"{interval} steps"}
        if plan.stacks is not None:
            self.sections["model"]["rack"]["stacks"] = plan.stacks
        masking = [section["task"]["use"] for section in (self.sections, *plan.phases.values()) if "task" in section]
        if "vocab" not in self.sections["model"]["embedding"] and len(set(masking)) > 1:
            self.sections["model"]["embedding"]["vocab"] = 257  # all bytes and a mask symbol: one size for all tasks
        always = self.sections["model"].get("freeze", [])
        for phase in plan.phases.values():
            if "freeze" in phase.get("model", {}):
                phase["model"]["freeze"] = list(dict.fromkeys([*always, *phase["model"]["freeze"]]))
        if plan.phases:
            self.sections["phases"] = plan.phases
        for key in [key for key in training.rest if key.startswith("wandb_")]:
            training.drop(key, ELSEWHERE["training.use_wandb"])
        for section in (model, training, data, self.old):
            section.end()

    def _task(self, model: Old, rates: Any) -> dict[str, Any]:
        preset = model.rest.get("attention_preset")
        objective = self.old.take("task")
        masked = objective in ("mlm", "masked_lm") or (objective is None and (rates is not None or preset == "bert_style"))
        if not masked:
            return {"use": "transformer.causal-lm"}
        return {"use": "transformer.masked-lm", **({"rate": rates} if rates is not None else {})}


def _model(old: Old) -> dict[str, Any]:
    shape = old.section("architecture")
    count, depth = int(shape.take("n_stacks", 1)), int(shape.take("blocks_per_stack", 1))
    shape.end()
    preset, custom = old.take("attention_preset", "gpt_style"), old.section("attention_custom")
    attention: dict[str, Any] = PRESETS.get(str(preset), {})
    if str(preset) not in PRESETS:
        old.dropped.append(f"model.attention_preset: {preset} has no counterpart: the attention is softmax attention")
    mode = custom.take("attention_mode")
    attention = {**attention, **({"attention": mode} if mode in ("causal", "bidirectional") else {})}
    for key in list(custom.rest):
        custom.drop(key, "this form of attention has no counterpart")
    rack: dict[str, Any] = {"use": "transformer.decoder", "width": old.take("d_model"), "heads": old.take("n_heads")}
    rack |= {
        new: value
        for key, new in (("n_kv_heads", "kv_heads"), ("d_ff", "ff"), ("dropout", "dropout"))
        if (value := old.take(key)) is not None
    }
    rack |= {"stacks": [{f"stack{i}": depth} for i in range(count)], "norm": {"kind": "rmsnorm", "at": "output"}}
    if old.take("use_rope", True):
        rack |= {"rope_base": base} if (base := old.take("rope_theta")) is not None else {}
    else:
        rack |= {"positions": "none"}
        old.drop("rope_theta", "use_rope is false")
    rack |= {key: value for key, value in attention.items() if value != "causal"}
    frozen = ["*.mlp.up.*"] if old.take("freeze_up_proj", False) else []
    tokens = old.section("tokenizer_embedding")
    frozen += ["embedding"] if tokens.take("freeze_embeddings", False) else []
    for key in list(tokens.rest):
        tokens.drop(key, "it named a model on a hub: `model.start` reads a folder here")
    vocab = old.take("vocab_size")
    found = {
        "embedding": {"use": "transformer.token", **({"vocab": int(vocab)} if vocab is not None else {})},
        "rack": {key: value for key, value in rack.items() if value is not None},
        "head": {"use": "transformer.lm", "tied": bool(old.take("tie_embeddings", False))},
    }
    return {**found, "freeze": frozen} if frozen else found


def _optimizer(old: Old) -> dict[str, Any]:
    kind = str(old.take("optimizer_type", "adamw")).lower()
    new: dict[str, Any] = {"use": OPTIMIZERS.get(kind, "optim.adamw")}
    if kind not in OPTIMIZERS:
        old.dropped.append(f"training.optimizer.optimizer_type: {kind} has no counterpart by that name: AdamW stands for it")
    new |= {key: value for key in ("lr", "weight_decay") if (value := old.take(key)) is not None}
    for key in ITS_OWN.get(kind, ()):
        value = old.take(key)
        if key == "betas" and value is not None:
            new |= {"beta1": number(value[0]), "beta2": number(value[1])}
        elif value is not None:
            new[key] = value
    groups, used = old.take("groups") or [], old.take("use_groups", bool(old.rest.get("groups")))
    if groups and used:
        new["groups"] = dict(_groups(groups, old))
    elif groups:
        old.dropped.append("training.optimizer.groups: use_groups is false")
    for key in ("betas", "eps", "momentum", "dampening", "nesterov", "custom_params"):
        old.drop(key, f"{new['use']} has no such option")
    old.end()
    return new


def _groups(groups: list[Any], old: Old) -> Iterator[tuple[str, dict[str, Any]]]:
    """Group by group: name, its rate and decay, and the selectors that its patterns become."""
    for i, entry in enumerate(groups):
        inner = Old(f"training.optimizer.groups.{i}", dict(entry), old.dropped)
        name = str(inner.take("name", f"group{i}"))
        patterns = inner.take("patterns") or inner.take("params") or [name]
        new: dict[str, Any] = {"select": [_selector(str(p)) for p in ([patterns] if isinstance(patterns, str) else patterns)]}
        new |= {key: value for key in ("lr", "weight_decay") if (value := inner.take(key)) is not None}
        inner.end()
        yield name, new


NAMES = {
    "embedding": "embedding",
    "embeddings": "embedding",
    "lm_head": "head",
    "attention": "*.attention.*",
    "ffn": "*.mlp.*",
    "norm": "*norm*",
}


def _selector(pattern: str) -> str:
    """The selector of what a pattern of old names meant."""
    return NAMES.get(pattern, f"rack.{pattern}" if pattern.startswith("stacks") else f"*{pattern.strip('*')}*")


def _mask_rates(training: Old) -> Any:
    """The share of masked tokens, as a number or a schedule; None where nothing is said of it."""
    low, high = training.take("min_mask_fraction"), training.take("max_mask_fraction")
    kind, listed = str(training.take("mask_schedule_type", "linear")), training.take("time_step_mask_fractions")
    timed = training.take("time_step_masking", False)
    training.drop("num_time_steps", "the list of mask fractions has its length")
    if timed and listed:
        return {"piecewise": {"values": {f"{100 * i / len(listed):g}%": number(value) for i, value in enumerate(listed)}}}
    if listed:
        training.dropped.append("training.time_step_mask_fractions: time_step_masking is false")
    if low is None and high is None:
        return None
    low, high = (high if low is None else low), (low if high is None else high)
    if low == high:
        return low
    if kind not in CURVES:
        training.dropped.append(f"training.mask_schedule_type: {kind} has no counterpart: the share follows a straight line")
    return {CURVES.get(kind, "linear"): {"from": low, "to": high}}


def translate(document: Mapping[str, Any]) -> TranslatedConfig:
    """The config that an old one meant.

    Raises:
        UserError: a section that is not a map.
    """
    dropped: list[str] = []
    translation = Translation(Old("", dict(document), dropped))
    translation.run()
    order = ("run", "task", "data", "model", "optimizer", "phases")
    sections = {name: translation.sections[name] for name in order if name in translation.sections}
    head = [
        "# Translated from a config of stack-wise by `stackwise migrate`.",
        "# data: the old training code read no file; put your own source in place of the standard library's.",
        "# norm.at: output means that blocks normalise after each branch, as stack-wise does; `pre` is the usual place.",
        *(["# Dropped:", *(f"#   {line}" for line in dropped)] if dropped else []),
    ]
    body = yaml.safe_dump({"stackwise": 1, **sections}, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    return TranslatedConfig(text="\n".join(head) + "\n" + body, dropped=tuple(dropped))
