"""The format of such folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from stackwise import BuildContext, StoredModel, UserError
from stackwise_providers_transformer.format_options import HuggingFaceOptions
from stackwise_providers_transformer.hugging_face.adapters import (
    ADAPTER_CONFIG,
    ADAPTERS,
    Adapted,
    Pairs,
    base_of,
    check_file,
    is_adapter,
    notes_of,
)
from stackwise_providers_transformer.hugging_face.architecture import FREE, PLAIN, Architecture, architecture_of, nodes_of
from stackwise_providers_transformer.hugging_face.beside import BESIDE, Matrices, matrices_of, read_beside, write_beside
from stackwise_providers_transformer.hugging_face.families import FAMILIES, Family
from stackwise_providers_transformer.hugging_face.joined import Renaming
from stackwise_providers_transformer.hugging_face.settings import DROPOUTS, KEPT, Config
from stackwise_providers_transformer.hugging_face.shards import Renamed, Shards, their_tensors, write_shards
from stackwise_providers_transformer.hugging_face.wrapped import CLASSIFIERS
from stackwise_providers_transformer.hugging_face.wrapped_folder import (
    auto_of,
    is_stored,
    is_wrapped,
    matrices_beside,
    read_wrapped,
    write_wrapped,
)

BASE = "base"
CONFIG, GENERATION, TOKENIZER, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"
TOKENIZER_FILES = (
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
)


class HuggingFaceFormat:
    """Reads and writes folders of transformers, without it.

    Args:
        options: whether pickles are read, and how large files are written.
    """

    holds_weight_adapters = True

    def __init__(self, options: HuggingFaceOptions) -> None:
        self._options = options

    def example(self) -> dict[str, dict[str, Any]]:
        """A tiny Llama."""
        return {
            "embedding": {"use": "transformer.token", "vocab": 8},
            "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "kv_heads": 1, "stacks": [{"base": 2}], "ff": 12},
            "head": {"use": "transformer.lm", "tied": False},
        }

    def recognises(self, folder: Path) -> bool:
        """Whether its `config.json` names a `model_type`, or its `adapter_config.json` the type of its adapters; adapters without
        either are refused by name when they are read."""
        try:
            if is_adapter(folder):
                return not (folder / ADAPTER_CONFIG).is_file() or "peft_type" in json.loads(
                    (folder / ADAPTER_CONFIG).read_text(encoding="utf-8")
                )
            return "model_type" in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError):
            return False

    def notes(self, folder: Path) -> tuple[str, ...]:
        """Dropout of a folder, which a run declares itself."""
        config = read_config(base_of(folder) if is_adapter(folder) else folder)
        return () if self._options.wrap or _is_strange(config) else tuple(_notes(config))

    def read(self, folder: Path) -> StoredModel:
        """The model of a folder; its tensors are read when they are asked for. Adapters are added to the base that they name.

        Raises:
            UserError: a family, a field or a tensor that is not known here, or a damaged file.
        """
        base = folder
        if is_adapter(folder):
            check_file(folder)
            base = base_of(folder)
        config = read_config(base)
        if base is folder and self._options.adapters == "beside":
            raise UserError(f"{folder} holds a model and no adapters beside one (no {ADAPTER_CONFIG}): leave `adapters` of the format out")
        if self._options.wrap or _is_strange(config):
            return self._read_wrapped(folder, base, config)
        family = family_of(config)
        architecture = read_architecture(config, family)
        shards = Shards(base, pickled=self._options.pickle)
        stored = StoredModel(model=nodes_of(architecture), tensors={}, free=FREE, notes=tuple(_notes(config)))
        if base is folder:
            return evolve(stored, tensors=Renamed(shards, family.names, architecture))
        pairs = Pairs(shards, folder, (matrices := matrices_of(family.names, architecture)).turned)
        if self._options.adapters == "beside":
            beside, tensors = read_beside(Renamed(shards, family.names, architecture), pairs, matrices)
            return evolve(stored, tensors=tensors, weight_adapters=beside)
        added = Renamed(Adapted(shards, pairs), family.names, architecture)
        return evolve(stored, tensors=added, notes=(*stored.notes, *notes_of(folder, base)))

    def _read_wrapped(self, folder: Path, base: Path, config: Config) -> StoredModel:
        """A model that the library computes, with the adapters of a folder where that is not the base."""
        read = read_wrapped(base, config, pickle=self._options.pickle)
        if base is folder:
            return read.stored
        there = Renaming(read.tensors, {theirs: ours for ours, theirs in read.names.items()}, base)
        pairs = Pairs(there, folder, read.matrices.turned)
        if self._options.adapters == "beside":
            beside, tensors = read_beside(read.tensors, pairs, read.matrices)
            return evolve(read.stored, tensors=tensors, weight_adapters=beside)
        added = Renaming(Adapted(there, pairs), read.names, base)
        return evolve(read.stored, tensors=added, notes=(*read.stored.notes, *notes_of(folder, base)))

    def write(self, model: Any, folder: Path, origin: Path | None, tokenizer: Mapping[str, bytes]) -> None:
        """Write `config.json`, `generation_config.json`, the weights and the tokenizer; of a model with low-rank adapters those alone, and
        the base into `base/` where it is not that of the folder that the run began from.

        Raises:
            UserError: no family has words for the model.
        """
        if origin is not None and is_adapter(origin):
            origin = base_of(origin)
        write = self._write_wrapped if is_wrapped(model) else self._write_model
        if not model.attached:
            write(model, folder, origin)
        else:
            base = BASE
            if origin is not None and self._is_base(origin, model):
                base = str(origin.resolve())
            else:
                (folder / BASE).mkdir()
                write(model, folder / BASE, origin)
            attached = {(name, _of_one_stack(path, model)): adapter for (name, path), adapter in model.attached.items()}
            write_beside(attached, self._matrices(model, origin), base, folder)
            (folder / ADAPTERS).chmod((folder / ADAPTER_CONFIG).stat().st_mode)
        write_tokenizer(folder, origin, tokenizer)

    def _write_wrapped(self, model: Any, folder: Path, origin: Path | None) -> None:
        write_wrapped(model, folder)
        if origin is not None and (origin / GENERATION).is_file():
            (folder / GENERATION).write_bytes((origin / GENERATION).read_bytes())

    def _is_base(self, origin: Path, model: Any) -> bool:
        """Whether a folder holds the very tensors that stand beside the adapters of a model."""
        stored = HuggingFaceFormat(evolve(self._options, adapters="merged", wrap=is_wrapped(model))).read(origin)
        if is_wrapped(model):
            return is_stored(model, stored)
        own = {_of_one_stack(name, model): tensor for name, tensor in model.named_parameters() if not name.startswith(BESIDE)}
        if stored.model != nodes_of(architecture_of(model)) or set(own) != set(stored.tensors):
            return False
        return all(torch.equal(stored.tensors[name].to(tensor.dtype), tensor) for name, tensor in own.items())

    def _matrices(self, model: Any, origin: Path | None) -> Matrices:
        """Of the base, by the names of the folder that it is written as."""
        if is_wrapped(model):
            return matrices_beside(model)
        family, _ = _expressed(architecture := architecture_of(model), {} if origin is None else dict(read_config(origin).fields))
        return matrices_of(family.names, architecture)

    def _write_model(self, model: Any, folder: Path, origin: Path | None) -> None:
        """Write the model without what stands beside it."""
        architecture = architecture_of(model)
        kept = {} if origin is None else dict(read_config(origin).fields)
        family, fields = _expressed(architecture, kept)
        left_out = ("head.weight", BESIDE) if architecture["head.tied"] else (BESIDE,)
        tensors = {
            _of_one_stack(name, model): tensor.detach() for name, tensor in model.state_dict().items() if not name.startswith(left_out)
        }
        kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
        fields = dict.fromkeys(family.ids) | fields
        fields |= {"model_type": family.model_type, "architectures": [family.architecture], "dtype": max(kinds, key=len)}
        if len(kinds) > 1:
            fields["dtype"] = "float32"
        write_shards(their_tensors(tensors, family.names, architecture), folder, self._options.file_bytes)
        _write_json(folder / CONFIG, fields)
        for path in folder.glob("*.safetensors"):
            path.chmod((folder / CONFIG).stat().st_mode)  # the library lets nobody else read what it writes
        generation = (origin / GENERATION) if origin is not None else None
        if generation is not None and generation.is_file():
            (folder / GENERATION).write_bytes(generation.read_bytes())
        else:
            ids = {name: fields.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            _write_json(folder / GENERATION, {"_from_model_config": True, **{name: id for name, id in ids.items() if id is not None}})


def read_config(folder: Path) -> Config:
    """The fields of a folder.

    Raises:
        UserError: no `config.json` that can be read.
    """
    path = folder / CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(fields, Mapping):
        raise UserError(f"{path} holds no map")
    return Config(path, fields)


def _is_strange(config: Config) -> bool:
    """Whether a folder is of a family, or has a head, that is not known here by itself."""
    known = config.fields.get("model_type") in FAMILIES and auto_of(config.fields) not in CLASSIFIERS
    return not known and "quantization_config" not in config.fields


def family_of(config: Config) -> Family:
    """The family that a folder is of.

    Raises:
        UserError: one that is not known, or a quantized model.
    """
    kind = config.get("model_type")
    if "quantization_config" in config.fields:
        raise config.refuse("quantization_config", "quantized weights are not read: take the folder they were made of")
    if kind not in FAMILIES:
        raise config.refuse("model_type", f"this family is not known here: {', '.join(FAMILIES)} are")
    return FAMILIES[kind]


def read_architecture(config: Config, family: Family) -> Architecture:
    """What the fields say.

    Raises:
        UserError: a field or a value that is not known here, by name.
    """
    architecture: Architecture = dict(PLAIN)
    for rule in family.rules:
        config.apply(rule, architecture)
    if left := config.left():
        raise UserError(
            f"{config.path}: {', '.join(f'{name}: {config.fields[name]!r}' for name in left)}: unknown for {family.model_type} models, so "
            "that what the model computes is not certain"
        )
    return architecture


def _notes(config: Config) -> Iterator[str]:
    """Fields of training that are not taken over."""
    for name in sorted(DROPOUTS & set(config.fields)):
        if config.fields[name]:
            yield f"{name}: {config.fields[name]} is not taken over: dropout is the option `dropout` of the rack, and may follow time"


def _expressed(architecture: Architecture, kept: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The family and the fields that say an architecture, checked by reading them back.

    Args:
        architecture: of the model.
        kept: fields of the folder that the run began from; its family comes first, and fields without effect are taken over.

    Raises:
        UserError: no family has words for it; what differs from the nearest is named.
    """
    first = FAMILIES.get(kept.get("model_type", ""))
    if first is not None and read_architecture(Config(Path(CONFIG), kept), first) == architecture:
        return first, dict(kept)
    order = [*((first,) if first else ()), *(family for family in FAMILIES.values() if family is not first)]
    nearest: tuple[str, list[str]] | None = None
    for family in order:
        fields: dict[str, Any] = {name: value for name, value in kept.items() if name in KEPT | DROPOUTS} if family is first else {}
        try:
            for rule in family.rules:
                rule.write(architecture, fields)
            again = read_architecture(Config(Path(CONFIG), fields), family)
        except (UserError, TypeError, ValueError, AttributeError, ZeroDivisionError):
            continue
        different = [name for name in {**again, **architecture} if again.get(name) != architecture.get(name)]
        if not different:
            return family, fields
        if nearest is None or len(different) < len(nearest[1]):
            nearest = (family.model_type, different)
    said = "" if nearest is None else f"; the nearest is {nearest[0]}, from which it differs in {', '.join(sorted(nearest[1]))}"
    raise UserError(f"no family of models that transformers knows, and that is known here, computes what this model does{said}")


def _of_one_stack(name: str, model: Any) -> str:
    """The name that a block's parameter has where all blocks make one stack."""
    parts = name.split(".")
    if parts[:2] != ["rack", "stacks"]:
        return name
    before = 0
    for stack in model.rack.options.stacks:
        if stack.name == parts[2]:
            break
        before += stack.blocks
    return ".".join(("rack", "stacks", "base", str(before + int(parts[3])), *parts[4:]))


def write_tokenizer(folder: Path, origin: Path | None, tokenizer: Mapping[str, bytes]) -> None:
    """The run's `tokenizer.json`, and what the folder that the run began from has beside an equal one; its own where the run has none.

    Args:
        folder: where to; its `config.json` is written.
        origin: the folder that the run began from.
        tokenizer: the run's files by name; files of tokenizers without a `tokenizer.json` have no place in such folders.
    """
    own = tokenizer.get(TOKENIZER)
    there = origin / TOKENIZER if origin is not None else None
    same = there is not None and there.is_file() and own in (None, there.read_bytes())
    if origin is not None and (same or (own is None and not tokenizer)):
        for name in TOKENIZER_FILES:
            if (origin / name).is_file():
                (folder / name).write_bytes((origin / name).read_bytes())
        _follow_context(folder, origin)
    elif own is not None:
        (folder / TOKENIZER).write_bytes(own)
        _write_json(folder / TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast"})


def _follow_context(folder: Path, origin: Path) -> None:
    """Write another context than that of the origin where its tokenizer is said to cut texts at the old one; any other length stays."""
    path, before = folder / TOKENIZER_CONFIG, _context(origin)
    now = _context(folder / BASE if (folder / BASE).is_dir() else folder)
    if not path.is_file() or None in (before, now) or before == now:
        return
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return  # taken over as it is, as the other files are
    if isinstance(said, dict) and said.get("model_max_length") == before:
        path.write_text(json.dumps({**said, "model_max_length": now}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _context(folder: Path) -> int | None:
    """The number of positions that a folder's `config.json` gives its model; None where it gives none."""
    if not (folder / CONFIG).is_file():
        return None
    fields = read_config(folder).fields
    return next((fields[name] for name in ("max_position_embeddings", "n_positions") if name in fields), None)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def build_hugging_face(options: HuggingFaceOptions, context: BuildContext) -> HuggingFaceFormat:
    """The factory of `hf`."""
    return HuggingFaceFormat(options)
