"""Models that the library transformers computes, cut into blocks and head: the blocks, and what both need.

The cut is where such models have it themselves: a model for a task calls its base model and makes logits of the hidden state that
comes back. So the rack is the base model, given embedded tokens; the head is the model for the task, in which something that passes on
a hidden state stands in the place of the base. The library computes both, whatever it multiplies, caps or adds.

Shapes: B batch, T time, D width, V vocab.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import getsource, signature
from typing import Any

import torch
from torch import nn

from stackwise import BuildContext, RackSpec, UserError
from stackwise_providers_transformer.experts import Reported
from stackwise_providers_transformer.hugging_face.unpacked import unpack
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.wrapped_options import WrappedRackOptions

CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "base": "AutoModel",
}
CLASSIFIERS = ("sequence-classification", "token-classification")
SIDES = {"positions": "position_ids", "mask": "attention_mask"}
TWO_ROWS = (
    "an encoder and a decoder read two rows, and rack transformer.hf has one: give such a model as a whole module in code, with a task of "
    "your own (docs/how-to/module.md), or train transformer.encoder-decoder from its beginning"
)
LAYERS = "num_hidden_layers"
"""The name under which every config of the library answers for its number of blocks."""


def library(asker: str) -> Any:
    """transformers.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("transformers")
    except ImportError as error:
        raise UserError(f"{asker} needs the library 'transformers' ({error}): pip install stackwise-providers-transformer[hf]") from error


@contextmanager
def quiet(hf: Any) -> Iterator[None]:
    """Without the library's progress bars and advice on the terminal; its errors are raised."""
    log = hf.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


def make_config(hf: Any, fields: Mapping[str, Any], where: str, blocks: int) -> Any:
    """The library's config of a map of fields.

    Args:
        hf: transformers.
        fields: as in a `config.json`, without the number of blocks.
        where: they stand, for messages.
        blocks: how many there are.

    Raises:
        UserError: a family or a value that it does not know; a field that it would keep without reading.
    """
    given = {name: value for name, value in fields.items() if name != "model_type"}
    try:
        with quiet(hf):
            plain = hf.AutoConfig.for_model(fields["model_type"])
            count = plain.attribute_map.get(LAYERS, LAYERS)
            given.setdefault(count, blocks)
            config = hf.AutoConfig.for_model(fields["model_type"], **given)
    except Exception as error:  # the library raises classes of its own and of others for a value that it refuses
        raise UserError(f"{where}: transformers {hf.__version__} refuses it: {error}") from error
    known = {*plain.to_dict(), *config.attribute_map, *getattr(type(config), "__dataclass_fields__", ()), "rope_theta", "rope_scaling"}
    if unknown := [name for name in given if name not in known and not _is_read(hf, config, name)]:
        raise UserError(f"{where}: {', '.join(unknown)}: no field of {fields['model_type']} models, and without effect: leave it out")
    if count in fields:
        raise UserError(f"{where}: {count} is what stacks says: leave it out")
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{where}: {fields['model_type']}: {TWO_ROWS}")
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _is_read(hf: Any, config: Any, name: str) -> bool:
    """Whether the code of a family names a field that its config does not declare, as `head_dim` of Qwen3-MoE."""
    try:
        model: Any = hf.AutoModel._model_mapping[type(config)]
        return re.search(rf"\b{re.escape(name)}\b", getsource(import_module(model.__module__))) is not None
    except (KeyError, OSError, TypeError):
        return False


def build_whole(hf: Any, auto: str, config: Any, where: str) -> Any:
    """A model of the library, drawn by it.

    Raises:
        UserError: it has no such model for this family, or refuses the sizes.
    """
    try:
        with quiet(hf):
            return getattr(hf, CLASSES[auto]).from_config(config)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise UserError(f"{where}: transformers {hf.__version__} cannot build this model: {error}") from error


def take_embedding(base: Any) -> Any:
    """Take the table of tokens out of a base model, which is given embedded tokens; a pooler, which nothing reads, goes as well."""
    table = base.get_input_embeddings()
    base.set_input_embeddings(nn.Identity())
    if getattr(base, "pooler", None) is not None:
        base.pooler = None
    return table


def is_causal(hf: Any, config: Any) -> bool:
    """Whether no position of a family's models sees a later one. Families that serve both kinds of language models say `is_decoder`."""
    if getattr(config, "is_decoder", False) or getattr(config, "use_bidirectional_attention", False):
        return bool(getattr(config, "is_decoder", False))
    return type(config) in hf.MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in hf.MODEL_FOR_MASKED_LM_MAPPING


class WrappedRack(nn.Module):
    """The base model of a family; its parameters are named `model.<own name>`.

    Raises:
        UserError: transformers is missing or refuses the config; the width or the blocks are not what it builds.
    """

    def __init__(self, options: WrappedRackOptions) -> None:
        super().__init__()
        check_sizes(width=options.width)
        self.options = options
        hf = library("rack transformer.hf")
        config = make_config(hf, options.config, "model.rack.config", options.stacks[0].blocks)
        self.model = build_whole(hf, "base", config, "model.rack.config")
        table = take_embedding(self.model)
        sizes = {"width": (options.width, config.hidden_size), "inputs": (options.inputs or options.width, table.weight.shape[1])}
        for name, (said, built) in sizes.items():
            if said != built:
                raise UserError(f"model.rack.{name} is {said}, and the model of this config has {built}: write {name}: {built}")
        self._check_blocks()
        self._balance = _balance_of(self.model) if options.balance else None
        self._first_position = _first_position(self.model)
        self._cache: Any = None

    def _check_blocks(self) -> None:
        path, count = self.options.blocks, self.options.stacks[0].blocks
        lists = {name: module for name, module in self.model.named_modules() if isinstance(module, nn.ModuleList)}
        if path not in lists or len(lists[path]) != count:
            there = ", ".join(f"{name} of {len(module)}" for name, module in lists.items())
            raise UserError(f"model.rack.blocks: {path} is not a list of {count} blocks; its lists are {there or 'none'}")
        for output in self.options.residual_outputs:
            if output not in dict(lists[path][0].named_parameters()):
                raise UserError(f"model.rack.residual_outputs: {output} is not a parameter of the blocks in {path}")

    def to_spec(self) -> RackSpec:
        """Hidden state in and out."""
        return self.options.to_spec()

    @property
    def continues(self) -> bool:
        """Whether rows can grow token by token without being read anew: under causality, where the library keeps keys and values."""
        stateful = getattr(self.model, "_is_stateful", False)
        return self.options.attention == "causal" and "past_key_values" in signature(self.model.forward).parameters and not stateful

    @contextmanager
    def caching(self, capacity: int) -> Iterator[None]:
        """Inside, every call continues the rows of the calls before: it is given the new entries only, and no side input.

        Args:
            capacity: the most positions a row will have; the library's cache grows by itself.
        """
        self._cache = library("rack transformer.hf").DynamicCache(config=self.model.config)
        try:
            yield
        finally:
            self._cache = None

    def forward(
        self, hidden: torch.Tensor, segments: torch.Tensor | None = None, **side: torch.Tensor | None
    ) -> torch.Tensor | tuple[torch.Tensor, Reported]:
        """hidden [B, T, D], segments [B, T] integer, positions [B, T] integer, mask [B, T] bool → [B, T, D].

        Documents of packed rows are computed each in a row of its own, so that no family has to know of them.

        Returns:
            [B, T, D]; with `balance` a pair, of that and the loss.

        Raises:
            UserError: more positions than the model has vectors for, or a document in two pieces.
        """
        given = {name: value for name, value in side.items() if value is not None}
        if hidden.is_meta:
            made = _shapes_only(self.model, hidden, {SIDES[name]: value.long() for name, value in given.items()})
            return (made, {"balance": (made.new_zeros(()), made.new_ones(()))}) if self.options.balance else made
        if segments is None:
            made, balance, count = self._rows(hidden, **given)
            return (made, {"balance": (balance, count)}) if self.options.balance else made
        causal, parts = self.options.attention == "causal", [segments, *(given[name] for name in ("mask",) if name in given)]
        apart = unpack(parts, padded=causal or "mask" in self.options.side)
        pieces, total, counts = [], hidden.new_zeros((), dtype=torch.float32), hidden.new_zeros((), dtype=torch.float32)
        for entries_GL, real_GL in apart.groups:
            own = {"mask": real_GL} if "mask" in self.options.side else {}
            own |= {"positions": given["positions"].flatten()[entries_GL]} if "positions" in given else {}
            made, balance, count = self._rows(hidden.flatten(0, 1)[entries_GL], **own)
            pieces.append(made)
            total, counts = total + balance, counts + count
        whole = apart.together(pieces, hidden)
        return (whole, {"balance": (total, counts)}) if self.options.balance else whole

    def _rows(
        self, hidden: torch.Tensor, positions: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows of one document each; the hidden state, and the balance as a sum and a number of positions."""
        given: dict[str, Any] = {} if positions is None else {"position_ids": positions.long() + self._first_position}
        if mask is not None:
            given["attention_mask"] = mask.long()
        if self.options.balance:
            given["output_router_logits"] = True
        if self._cache is not None:
            given |= {"past_key_values": self._cache, "use_cache": True}
        try:
            result = self.model(inputs_embeds=hidden, **given)
        except IndexError as error:
            raise UserError(f"a row of {hidden.shape[1]} positions is longer than this model's table of positions: {error}") from error
        if self._balance is None:
            return result[0], hidden.new_zeros(()), hidden.new_zeros(())
        real = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask
        count = real.sum(dtype=torch.float32)
        return result[0], self._balance(result.router_logits, given.get("attention_mask")) * count, count


def _balance_of(model: Any) -> Callable[[Any, Any], torch.Tensor]:
    """The library's own loss of the routers of a family: (their scores, mask) → one number.

    Raises:
        UserError: it has none.
    """
    config, rule = model.config, getattr(import_module(type(model).__module__), "load_balancing_loss_func", None)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active = getattr(config, "num_experts_per_tok", None)
    if rule is None or experts is None or active is None:
        raise UserError(f"model.rack.balance: transformers computes no load balance for {config.model_type} models: leave it out")
    return lambda scores, mask: rule(scores, experts, active, mask)


def _first_position(model: Any) -> int:
    """The number that a family gives to the first position of a row: those of RoBERTa's form start after the padding's id."""
    counting = (module for module in model.modules() if hasattr(module, "create_position_ids_from_inputs_embeds"))
    return next((int(module.padding_idx) + 1 for module in counting), 0)


def _shapes_only(base: Any, hidden_BTD: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
    """The shape of what a base model returns, and the price of it, on the meta device.

    The library reads the values of a mask with two dimensions, and looks for jumps in the positions where there is none; a mask with four
    dimensions it uses as it is. Models that build their own masks do not accept one.
    """
    batch, time = hidden_BTD.shape[:2]
    whole_B1TT = torch.ones(batch, 1, time, time, dtype=torch.bool, device=hidden_BTD.device)
    if hasattr(base, "set_experts_implementation"):
        base.set_experts_implementation("batched_mm")  # others read how many tokens an expert has
    result: torch.Tensor
    try:
        result = base(inputs_embeds=hidden_BTD, **{**given, "attention_mask": whole_B1TT})[0]
    except (RuntimeError, ValueError, TypeError):
        result = base(inputs_embeds=hidden_BTD, **{name: value for name, value in given.items() if name != "attention_mask"})[0]
    return result


def build_wrapped_rack(options: WrappedRackOptions, context: BuildContext) -> WrappedRack:
    """The factory of the rack `hf`."""
    return WrappedRack(options)
