"""Folders whose models the library transformers computes: read and written by it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import nn

from stackwise import StoredModel, UserError
from stackwise_providers_transformer.hugging_face.beside import BESIDE, Matrices, Place
from stackwise_providers_transformer.hugging_face.joined import Joined, Renaming, joined
from stackwise_providers_transformer.hugging_face.names import Plain
from stackwise_providers_transformer.hugging_face.settings import Config
from stackwise_providers_transformer.hugging_face.shards import Shards, holds_pickles_only, refuse_pickles
from stackwise_providers_transformer.hugging_face.wrapped import (
    CLASSES,
    CLASSIFIERS,
    LAYERS,
    SIDES,
    TWO_ROWS,
    WrappedRack,
    build_whole,
    is_causal,
    library,
    make_config,
    quiet,
    take_embedding,
)
from stackwise_providers_transformer.hugging_face.wrapped_heads import HandsOn

NOISE = frozenset({"_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "torch_dtype", "transformers_version"})
"""Fields that say nothing of what a model computes: names, versions, and the labels of classifiers."""
LABELS = {"id2label", "label2id"}


@frozen
class Wrapped:
    """A folder whose model the library computes."""

    stored: StoredModel
    tensors: Renaming
    names: Mapping[str, str]
    """Our names → those in the library's model."""
    matrices: Matrices


def read_wrapped(folder: Path, config: Config, *, pickle: bool) -> Wrapped:
    """The model of a folder. Its tensors are read one at a time where the library does no more than rename them and put them together;
    where it does, it reads the whole model at once.

    Raises:
        UserError: transformers is missing or refuses the folder; weights that its model has no place for, or lacks.
    """
    hf = library(f"{config.path}: the family {config.fields.get('model_type')} is not known here by itself, and format transformer.hf")
    _check_kind(hf, config)
    if holds_pickles_only(folder) and not pickle:
        raise refuse_pickles(folder)
    auto = auto_of(config.fields)
    whole, stored, left = _by_name(hf, auto, folder) or _load(hf, auto, folder, pickle=pickle)
    base = getattr(whole, whole.base_model_prefix, whole)
    inside, pooler = "" if base is whole else f"{whole.base_model_prefix}.", getattr(base, "pooler", None)
    notes = [
        "dropout is what the fields of config say, and does not follow time",
        *_left_behind(auto, pooler, left, code="auto_map" in config.fields),
    ]
    tied, (place,) = _tied(whole, base), _below(base, base.get_input_embeddings())
    held, modules = whole.state_dict(), dict(whole.named_modules())
    table = take_embedding(base)
    if list(dict(table.named_parameters())) != ["weight"]:
        raise UserError(
            f"{folder}: its tokens are embedded by more than one table ({type(table).__name__}), for which there is no part here"
        )
    (vocab, inputs), width = table.weight.shape, whole.config.hidden_size
    fields = _fields(hf, config.fields, whole.config, labels=auto in CLASSIFIERS)
    embedding = {"use": "transformer.token", "vocab": vocab, "width": inputs, **_scale(table)}
    names = {"embedding.weight": f"{inside}{place}weight"} | {f"rack.model.{name}": f"{inside}{name}" for name, _ in _persistent(base)}
    rack: dict[str, Any] = {"use": "transformer.hf", "config": fields, "width": width}
    rack |= {"inputs": inputs} if inputs != width else {}
    rack |= {"stacks": [{"base": getattr(whole.config, LAYERS)}], "blocks": _blocks(base, whole.config, folder)}
    rack |= {} if is_causal(hf, whole.config) else {"attention": "bidirectional"}
    side = [name for name, theirs in SIDES.items() if theirs in inspect.signature(base.forward).parameters]
    rack |= {"side": side} if side != list(SIDES) else {}
    if config.fields.get("output_router_logits"):
        rack["balance"] = True
        weight = getattr(whole.config, "router_aux_loss_coef", 0.001)
        notes.append(
            f"output_router_logits: the balance of the routers is a loss: weigh it, task: {{auxiliary: {{rack.balance: {weight}}}}}"
        )
    head: dict[str, Any] = {"use": "transformer.lm"}
    if auto in CLASSIFIERS:
        each = "row" if auto == CLASSIFIERS[0] else "token"
        head = {"use": "transformer.hf-classifier", "config": fields, "classes": whole.config.num_labels, "each": each}
    elif auto != "base":
        head = {"use": "transformer.hf", "config": fields, "auto": auto, **({"tied": tied} if tied else {})}
    if auto != "base":
        setattr(whole, whole.base_model_prefix, HandsOn(pooler if auto in CLASSIFIERS else None))
        names |= {f"head.model.{name}": name for name, _ in _persistent(whole) if name != tied}
    model = {"embedding": embedding, "rack": rack, "head": head}
    tensors = Renaming({name: tensor.detach() for name, tensor in held.items()} if stored is None else stored, names, folder)
    free = ("rack.residual_outputs", "rack.balance")
    declared = StoredModel(model=model, tensors=tensors, free=free, notes=tuple(notes))
    return Wrapped(declared, tensors, names, _matrices(names, modules, rack, inside))


def _matrices(names: Mapping[str, str], modules: Mapping[str, nn.Module], rack: Mapping[str, Any], inside: str) -> Matrices:
    """The matrices of linear maps of a model of the library, and the names of those that stand on their side."""
    paths = {theirs: ours.removesuffix(".weight") for ours, theirs in names.items() if ours.endswith(".weight")}
    kinds = {theirs: type(modules[theirs.removesuffix(".weight")]) for theirs in paths}
    linear = [theirs for theirs, kind in kinds.items() if issubclass(kind, nn.Linear)]
    return Matrices(
        places={theirs: Place(paths[theirs], None, Plain((theirs,)), True) for theirs in linear},
        theirs=f"{inside}{rack['blocks']}.{{i}}.",
        ours=f"rack.model.{rack['blocks']}.",
        blocks=next(iter(rack["stacks"][0].values())),
        turned=frozenset(theirs for theirs, kind in kinds.items() if kind.__name__ == "Conv1D"),
        sizes={},
    )


def matrices_beside(model: Any) -> Matrices:
    """The matrices of a model whose rack the library computes, as adapters beside them are written."""
    rack, head = model.rack, getattr(model.head, "model", None)
    inside = "" if head is None else f"{head.base_model_prefix}."
    modules = {f"{inside}{name}": module for name, module in rack.model.named_modules()}
    names = {f"rack.model.{name}": f"{inside}{name}" for name, _ in rack.model.named_parameters()}
    if head is not None:
        modules |= dict(head.named_modules())
        names |= {f"head.model.{name}": name for name, _ in head.named_parameters()}
    blocks = [{stack.name: stack.blocks} for stack in rack.options.stacks]
    return _matrices(names, modules, {"blocks": rack.options.blocks, "stacks": blocks}, inside)


def is_stored(model: Any, stored: StoredModel) -> bool:
    """Whether a folder declares the model whose rack the library computes, and holds its very tensors."""
    rack, own = stored.model["rack"], {name: each for name, each in model.named_parameters() if not name.startswith(BESIDE)}
    blocks = [{stack.name: stack.blocks} for stack in model.rack.options.stacks]
    if rack.get("config") != model.rack.options.config or rack["stacks"] != blocks or not set(own) <= set(stored.tensors):
        return False
    return all(torch.equal(stored.tensors[name].to(tensor.dtype), tensor) for name, tensor in own.items())


def _check_kind(hf: Any, config: Config) -> None:
    """Refuse, before anything is loaded, a model that no rack is.

    Raises:
        UserError: it reads two rows, or something else than tokens, or is computed by code that stands beside it.
    """
    if config.fields.get("auto_map") and config.fields.get("model_type") not in hf.CONFIG_MAPPING:
        raise config.refuse(
            "auto_map", "code in the folder computes this model, and code of folders is not run; transformers itself has no such family"
        )
    try:
        with quiet(hf):
            full = hf.AutoConfig.for_model(config.fields["model_type"], **{k: v for k, v in config.fields.items() if k != "model_type"})
    except Exception:  # loading says it better
        return
    if getattr(full, "is_encoder_decoder", False):
        raise config.refuse("model_type", TWO_ROWS)
    if not isinstance(getattr(full, "vocab_size", None), int):
        raise config.refuse(
            "model_type",
            "its config has no vocab_size: it reads no tokens, and rack transformer.hf stands after transformer.token: give such a model "
            "as a whole module in code (docs/how-to/module.md)",
        )


def _left_behind(auto: str, pooler: nn.Module | None, left: Sequence[str], *, code: bool) -> Iterator[str]:
    """What of a folder is not taken over, in sentences."""
    if code:
        yield "auto_map: code in the folder is not run; transformers' own class of this family computes the model"
    if auto == "base":
        yield "the folder holds no head that is read: `head` is one with the embedding's matrix; give another, as transformer.classifier"
    if left:
        yield f"{_listed(left)}: not taken over, as only heads for causal and masked language and for classes are read"
    if auto not in CLASSIFIERS and (own := [f"pooler.{name}" for name, _ in (pooler or nn.Module()).named_parameters()]):
        yield f"{', '.join(own)}: not taken over, as nothing here reads a pooled state"


def write_wrapped(model: Any, folder: Path) -> None:
    """Write a model whose rack the library computes, by the library.

    Raises:
        UserError: its embedding or its head are not those of such a folder.
    """
    hf, rack = library("format transformer.hf"), model.rack
    auto = getattr(getattr(model.head, "options", None), "auto", "base")
    if auto == "base" and (own := [name for name, _ in model.head.named_parameters() if f"head.{name}" in dict(model.named_parameters())]):
        raise UserError(
            f"a folder of this family has no place for the head's {', '.join(own)}: its head is the embedding's matrix, or transformer.hf"
        )
    if auto != "base" and model.head.options.config != rack.options.config:
        raise UserError("rack.config and head.config differ, and a folder has one config.json: give both the same")
    config = make_config(hf, rack.options.config, "model.rack.config", rack.options.stacks[0].blocks)
    whole = build_whole(hf, auto, config, "model.rack.config")
    base = getattr(whole, whole.base_model_prefix, whole)
    values = {name: tensor.detach() for name, tensor in model.state_dict(keep_vars=True).items() if not name.startswith(BESIDE)}
    scale = dict(_scale(base.get_input_embeddings())).get("scale", 1.0)
    if getattr(model.embedding.options, "scale", 1.0) != scale:
        raise UserError(
            f"embedding.scale is {model.embedding.options.scale:g}, and that of this family {scale:g}: a folder has no field for it"
        )
    kinds = {tensor.dtype for tensor in values.values() if tensor.is_floating_point()}
    whole.to(kinds.pop() if len(kinds) == 1 else torch.float32)
    _fill(base.get_input_embeddings(), "embedding.", values)
    _fill(base, "rack.model.", values, ("pooler.", *_below(base, base.get_input_embeddings())))
    if auto != "base":
        _fill(whole, "head.model.", values, (f"{whole.base_model_prefix}.",))
    if auto in CLASSIFIERS and getattr(base, "pooler", None) is not None:
        _fill(base.pooler, f"head.model.{whole.base_model_prefix}.pooler.", values)
    if base is whole and getattr(base, "pooler", None) is not None:
        base.pooler = None
    if hasattr(config, "use_cache"):
        config.use_cache = rack.options.config.get("use_cache", True)
    with quiet(hf):
        whole.save_pretrained(folder)


def is_wrapped(model: Any) -> bool:
    """Whether the library computes a model's rack."""
    return isinstance(model.rack, WrappedRack)


def auto_of(fields: Mapping[str, Any]) -> str:
    """The class of the library for a folder, by the name of the class that wrote it."""
    names = fields.get("architectures") or [""]
    ends = {"LMHeadModel": "causal-lm"} | {CLASSES[auto].removeprefix("AutoModel"): auto for auto in CLASSES if auto != "base"}
    return next((auto for end, auto in ends.items() if str(names[0]).endswith(end)), "base")


def _by_name(hf: Any, auto: str, folder: Path) -> tuple[Any, Joined, tuple[str, ...]] | None:
    """The model of a folder without its numbers, and its tensors by the model's names.

    Returns:
        None where the tensors are not the model's own: the library has to read the folder itself, or to say what is wrong with it.
    """
    try:
        with quiet(hf), torch.device("meta"):
            whole = getattr(hf, CLASSES[auto]).from_config(_own_config(hf, folder), trust_remote_code=False)
            shapes = {name: tuple(tensor.shape) for name, tensor in _persistent(whole)}
            stored = joined(whole, Shards(folder, pickled=False), shapes)
        _scale(getattr(whole, whole.base_model_prefix, whole).get_input_embeddings())
    except Exception:  # what the library, its constructors or its files raise, it says better when it reads the folder
        return None
    return None if stored is None else (whole, stored, ())


def _own_config(hf: Any, folder: Path) -> Any:
    """The config of a folder, by the library's own classes: code beside it is not run, and nobody is asked whether it may be."""
    return hf.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _load(hf: Any, auto: str, folder: Path, *, pickle: bool) -> tuple[Any, None, tuple[str, ...]]:
    """The model as the library reads it, and the names of tensors that it has no place for."""
    try:
        with quiet(hf):
            whole, info = getattr(hf, CLASSES[auto]).from_pretrained(
                folder,
                config=_own_config(hf, folder),
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                dtype="auto",
                use_safetensors=None if pickle else True,
            )
    except Exception as error:  # the library raises classes of its own and of others for a folder that it refuses
        raise UserError(f"{folder}: transformers {hf.__version__} does not read it: {error}") from error
    problems = [f"{kind.replace('_', ' ')}: {_listed(info[kind])}" for kind in info if info.get(kind)]
    if problems := [line for line in problems if auto != "base" or not line.startswith(("missing keys: pooler", "unexpected keys"))]:
        kind = f"{folder / 'config.json'} says model_type: {whole.config.model_type!r}"
        raise UserError(f"{kind}, and the weights beside it are not those of a {type(whole).__name__}: {'; '.join(problems)}")
    return whole.eval(), None, tuple(sorted(info["unexpected_keys"]))


def _listed(names: Any) -> str:
    """The first of some names, and how many more there are."""
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")


def _fields(hf: Any, given: Mapping[str, Any], config: Any, *, labels: bool) -> dict[str, Any]:
    """What a folder says of its model, without the number of blocks, and without lists of an entry a block that the library fills in
    itself, so that blocks can be added."""
    blocks, out = getattr(config, LAYERS), {*NOISE, config.attribute_map.get(LAYERS, LAYERS)} - (LABELS if labels else set())
    plain = hf.AutoConfig.for_model(given["model_type"])
    fields = {name: value for name, value in given.items() if name not in out and not (value is None and getattr(plain, name, 0) is None)}
    full = make_config(hf, fields, "config.json", blocks).to_dict()
    for name in [name for name, value in fields.items() if isinstance(value, list) and len(value) == blocks]:
        rest = {key: value for key, value in fields.items() if key != name}
        if json.dumps(make_config(hf, rest, "config.json", blocks).to_dict().get(name)) == json.dumps(full.get(name)):
            fields = rest
    return fields


def _blocks(base: Any, config: Any, folder: Path) -> str:
    """The path of the outermost list of blocks.

    Raises:
        UserError: there is none.
    """
    count = getattr(config, LAYERS, None)
    paths: Iterator[str] = (path for path, module in base.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    if (path := next(paths, None)) is None:
        raise UserError(f"{folder}: a {type(base).__name__} is not a list of blocks, one after the other, and has no place in a rack")
    return path


def _scale(table: Any) -> dict[str, float]:
    """What every vector of a table is multiplied by, as the option of an embedding."""
    scale = float(getattr(table, "scalar_embed_scale", getattr(table, "embed_scale", 1.0)))
    return {} if scale == 1.0 else {"scale": scale}


def _tied(whole: Any, base: Any) -> str | None:
    """The head's name of the embedding's matrix; None where the head has its own."""
    matrix, inside = base.get_input_embeddings().weight, f"{whole.base_model_prefix}."
    names = [name for name, parameter in whole.named_parameters(remove_duplicate=False) if parameter is matrix]
    return next((name for name in names if not name.startswith(inside) and base is not whole), None)


def _persistent(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, tied ones once, and persistent buffers."""
    yield from module.named_parameters()
    kept = module.state_dict().keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def _below(base: nn.Module, part: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, module in base.named_modules() if module is part)


def _fill(module: nn.Module, prefix: str, values: Mapping[str, torch.Tensor], without: tuple[str, ...] = ()) -> None:
    """Write a run's tensors into a module of the library, but for parts of it."""
    with torch.no_grad():
        for name, tensor in _persistent(module):
            if not name.startswith(without or "\0"):
                if f"{prefix}{name}" not in values:
                    raise UserError(f"{prefix}{name} is not in the model, and its folder has it")
                tensor.copy_(values[f"{prefix}{name}"])
