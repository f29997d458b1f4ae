"""`config.json` of a folder, read so that every field is used or refused by name, and written back.

A rule knows some fields and what they mean for the architecture, both ways; a family of models is a list of rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field, frozen

from stackwise import UserError
from stackwise_providers_transformer.hugging_face.architecture import Architecture

NOTHING: Any = object()

KEPT = frozenset(
    [
        "architectures",
        "model_type",
        "transformers_version",
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "use_cache",
        "initializer_range",
        "initializer_cutoff_factor",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "cls_token_id",
        "sep_token_id",
        "unk_token_id",
        "mask_token_id",
        "max_position_embeddings",
        "max_window_layers",
        "_sliding_window_pattern",
        "sliding_window_pattern",
        "no_rope_layer_interval",
        "global_attn_every_n_layers",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "classifier_dropout",
        "classifier_pooling",
        "deterministic_flash_attn",
        "sparse_prediction",
        "sparse_pred_ignore_index",
        "reference_compile",
        "id2label",
        "label2id",
        "problem_type",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "gradient_checkpointing",
        "task_specific_params",
        "n_ctx",
        "cache_implementation",
        "reorder_and_upcast_attn",
        "attn_implementation",
        "_attn_implementation",
        "repad_logits_with_grad",
    ]
)
"""Fields that change nothing of what the architecture computes; an export takes them over from the folder that a run began from."""

DROPOUTS = frozenset(
    [
        "attention_dropout",
        "hidden_dropout",
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "mlp_dropout",
        "embedding_dropout",
    ]
)
"""Fields of training alone: here dropout is an option of the rack that may follow time."""


@define
class Config:
    """The fields of a folder, and which of them a rule has read."""

    path: Path
    fields: Mapping[str, Any]
    _read: set[str] = field(factory=set)
    _now: set[str] = field(factory=set)
    """Those that the rule at work has read."""

    def get(self, name: str, default: Any = NOTHING, *, null: bool = False) -> Any:
        """A field, now read; null counts as left out where there is a default.

        Args:
            name: of the field.
            default: what holds where it is left out.
            null: whether null is a value of its own.

        Raises:
            UserError: it is missing and has no default.
        """
        self._read.add(name)
        self._now.add(name)
        value = self.fields.get(name, NOTHING)
        if value is NOTHING or (value is None and default is not NOTHING and not null):
            value = default
        if value is NOTHING:
            raise UserError(f"{self.path}: the field '{name}' is missing, which every {self.fields.get('model_type')} model has")
        return value

    def size(self, name: str, value: Any) -> int:
        """A value, which must be a size.

        Raises:
            UserError: it is none.
        """
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refuse(name, "a size is a whole number from 1 on")
        return value

    def apply(self, rule: Rule, into: Architecture) -> None:
        """Let a rule read.

        Raises:
            UserError: a value that has no meaning here, or that the rule cannot calculate with.
        """
        self._now.clear()
        try:
            rule.read(self, into)
        except UserError as error:
            raise error if str(self.path) in str(error) else self._useless(str(error)) from None
        except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError) as error:
            raise self._useless(f"{type(error).__name__}: {error}") from error

    def _useless(self, why: str) -> UserError:
        """The error for what the rule that reads has read."""
        names = ", ".join(f"{name}: {self.fields[name]!r}" for name in sorted(self._now & set(self.fields)))
        return UserError(f"{self.path}: {names}: no such value is known here: {why}")

    def refuse(self, name: str, why: str) -> UserError:
        """The error for a field."""
        return UserError(f"{self.path}: {name}: {self.fields.get(name)!r}: {why}")

    def left(self) -> list[str]:
        """Fields that no rule has read and that are not of those without effect."""
        return sorted(set(self.fields) - self._read - KEPT - DROPOUTS)


class Rule(Protocol):
    """Some fields and their meaning."""

    def read(self, config: Config, into: Architecture) -> None:
        """Put what the fields say into the architecture.

        Raises:
            UserError: a value that has no meaning here.
        """
        ...

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Put what the architecture is into the fields; a value without words is left out, and reading back finds the difference."""
        ...


@frozen
class Same:
    """A field whose value is that of one option, or of several."""

    theirs: str
    ours: tuple[str, ...]
    default: Any = NOTHING
    like: str = ""
    """The option whose value holds where the field is left out."""
    null: bool = False
    """Whether null is a value of its own, and not the field left out."""

    @classmethod
    def of(cls, theirs: str, *ours: str, default: Any = NOTHING, like: str = "", null: bool = False) -> Same:
        """With any number of options."""
        return cls(theirs, ours, default, like, null)

    def read(self, config: Config, into: Architecture) -> None:
        """Take the value."""
        value = config.get(self.theirs, into[self.like] if self.like else self.default, null=self.null)
        if self.default is NOTHING:
            config.size(self.theirs, value)
        into |= dict.fromkeys(self.ours, value)

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Give the value of the first option."""
        into[self.theirs] = architecture[self.ours[0]]


@frozen
class Words:
    """A field whose values have other words here."""

    theirs: str
    ours: str
    words: Mapping[Any, Any]
    default: Any = NOTHING

    def read(self, config: Config, into: Architecture) -> None:
        """Translate the value."""
        value = config.get(self.theirs, self.default)
        if value not in self.words:
            raise config.refuse(self.theirs, f"known are {', '.join(map(str, self.words))}")
        into[self.ours] = self.words[value]

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Translate back."""
        for theirs, ours in self.words.items():
            if ours == architecture[self.ours]:
                into[self.theirs] = theirs
                return


@frozen
class Must:
    """A field that can have one value only; others mean a model that is not known here."""

    theirs: str
    value: Any
    also: tuple[Any, ...] = ()
    """Values that mean the same."""

    def read(self, config: Config, into: Architecture) -> None:
        """Refuse other values."""
        value = config.get(self.theirs, self.value)
        if value != self.value and value not in self.also:
            raise config.refuse(self.theirs, f"such models are not known here; the one value that is, is {self.value!r}")

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """Write the value."""
        into[self.theirs] = self.value


@frozen
class Always:
    """Options of a family that no field says."""

    values: Mapping[str, Any]

    def read(self, config: Config, into: Architecture) -> None:
        """Set them."""
        into |= self.values

    def write(self, architecture: Architecture, into: dict[str, Any]) -> None:
        """There is nothing to write."""
