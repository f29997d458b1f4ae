"""The state dicts of stack-wise, as a format of folders: `rack.pt`, or the only torch file in the folder."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from stackwise import BuildContext, StoredModel, TranslatedConfig, UserError
from stackwise_providers_transformer.options import DecoderOptions
from stackwise_providers_transformer.predecessor.config import SECTIONS, translate

FILE = "rack.pt"
BLOCK = {
    "attention_norm": "norm1",
    "mlp_norm": "norm2",
    "attention.output": "attention.W_o",
    "mlp.gate": "ffn.gate_proj",
    "mlp.up": "ffn.up_proj",
    "mlp.down": "ffn.down_proj",
}
"""Module of a block here → its name there; queries, keys and values are one matrix here and three there."""
QKV = ("attention.W_q", "attention.W_k", "attention.W_v")
WHOLE = {"embedding": "embedding", "rack.norm": "ln_f", "head": "lm_head"}
_INDEXED = re.compile(r"stacks\.(\d+)\.blocks\.(\d+)\.(.+)")


class StackWiseFormat:
    """Reads and writes the state dicts of stack-wise, and translates its configs."""

    def example(self) -> dict[str, dict[str, Any]]:
        """A tiny model of two stacks."""
        rack = {"width": 8, "heads": 2, "kv_heads": 1, "stacks": [{"stack0": 1}, {"stack1": 2}], "ff": 12, "norm": {"at": "output"}}
        return {
            "embedding": {"use": "transformer.token", "vocab": 8},
            "rack": {"use": "transformer.decoder", **rack},
            "head": {"use": "transformer.lm", "tied": False},
        }

    def recognises(self, folder: Path) -> bool:
        """Whether it holds a `rack.pt`."""
        return (folder / FILE).is_file()

    def translates(self, document: Mapping[str, Any]) -> bool:
        """Whether a config has sections and keys of its own."""
        model = document.get("model")
        known = isinstance(model, Mapping) and ("d_model" in model or "architecture" in model)
        return (
            "stackwise" not in document and (known or isinstance(document.get("schedule"), list)) and any(s in document for s in SECTIONS)
        )

    def translate(self, document: Mapping[str, Any]) -> TranslatedConfig:
        """The config that an old one meant.

        Raises:
            UserError: a section that is not a map.
        """
        return translate(document)

    def read(self, folder: Path) -> StoredModel:
        """The model of `rack.pt`, read without running code from it (torch's `weights_only`).

        Raises:
            UserError: it is no such file, does not say its heads, or holds a tensor that is not known.
        """
        path = folder / FILE
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} is not a file of tensors: {str(error).splitlines()[0]}") from error
        theirs, about = dict(_tensors(content)), content.get("config") if isinstance(content, Mapping) else None
        heads = about.get("n_heads") if isinstance(about, Mapping) else None
        if not theirs or not isinstance(heads, int):
            raise UserError(f"{path} does not say how many heads it has: give it a map `config` with n_heads, beside the tensors")
        depths: dict[int, int] = {}
        for name in theirs:
            if found := _INDEXED.fullmatch(name):
                depths[int(found[1])] = max(depths.get(int(found[1]), 0), int(found[2]) + 1)
        tensors = dict(_renamed(theirs, depths, path))
        return StoredModel(model=_sections(tensors, depths, heads, about), tensors=tensors)

    def write(self, model: Any, folder: Path, origin: Path | None, tokenizer: Mapping[str, bytes]) -> None:
        """Write `rack.pt`.

        Raises:
            UserError: the model has parts that those files have no names for.
        """
        theirs: dict[str, torch.Tensor] = {}
        stacks = list(model.rack.stacks)
        options = model.rack.options
        for name, tensor in model.state_dict().items():
            theirs |= _written(name, tensor, stacks, options)
        torch.save({**theirs, "config": {"n_heads": options.heads}}, folder / FILE)


def _tensors(content: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Dotted name → tensor, whether the file is flat or nested."""
    if isinstance(content, torch.Tensor):
        yield path, content
    elif isinstance(content, Mapping):
        for key, inner in content.items():
            yield from _tensors(inner, f"{path}.{key}".strip(".").replace("embeddings", "embedding"))


def _renamed(theirs: Mapping[str, torch.Tensor], depths: Mapping[int, int], path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Our names; every tensor of the file is used or named in an error."""
    rest = dict(theirs)
    try:
        for ours, old in WHOLE.items():
            if ours != "head" or f"{old}.weight" in rest:
                yield f"{ours}.weight", rest.pop(f"{old}.weight")
        for stack, depth in depths.items():
            for i in range(depth):
                old, new = f"stacks.{stack}.blocks.{i}", f"rack.stacks.stack{stack}.{i}"
                yield f"{new}.attention.qkv.weight", torch.cat([rest.pop(f"{old}.{part}.weight") for part in QKV])
                for ours, name in BLOCK.items():
                    yield f"{new}.{ours}.weight", rest.pop(f"{old}.{name}.weight")
    except KeyError as error:
        raise UserError(f"{path} has no tensor {error.args[0]}") from None
    if rest:
        raise UserError(f"{path} holds tensors that have no place here: {', '.join(sorted(rest)[:5])}")


def _sections(
    tensors: Mapping[str, torch.Tensor], depths: Mapping[int, int], heads: int, about: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """The model that tensors of these shapes belong to."""
    vocab, width = tensors["embedding.weight"].shape
    size = width // heads
    rows = tensors["rack.stacks.stack0.0.attention.qkv.weight"].shape[0]
    kv = (rows // size - heads) // 2
    rack: dict[str, Any] = {"use": "transformer.decoder", "width": width, "heads": heads}
    rack |= {"kv_heads": kv} if kv != heads else {}
    rack |= {"stacks": [{f"stack{stack}": depth} for stack, depth in sorted(depths.items())]}
    rack |= {"ff": tensors["rack.stacks.stack0.0.mlp.up.weight"].shape[0], "norm": {"at": "output"}}
    base = (about or {}).get("rope_theta")
    rack |= {"rope_base": float(base)} if base else {}
    head = {"use": "transformer.lm", "tied": "head.weight" not in tensors}
    return {"embedding": {"use": "transformer.token", "vocab": vocab}, "rack": rack, "head": head}


def _written(name: str, tensor: torch.Tensor, stacks: list[str], options: DecoderOptions) -> dict[str, torch.Tensor]:
    """One of our tensors under their names.

    Raises:
        UserError: there is no name for it.
    """
    module, _, kind = name.rpartition(".")
    if kind == "weight" and module in WHOLE:
        return {f"{WHOLE[module]}.weight": tensor}
    found = re.fullmatch(r"rack\.stacks\.(\w+)\.(\d+)\.(.+)", module)
    if kind != "weight" or found is None or (found[3] not in BLOCK and found[3] != "attention.qkv"):
        raise UserError(f"files of stack-wise have no name for {name}: export another format")
    old = f"stacks.{stacks.index(found[1])}.blocks.{found[2]}"
    if found[3] != "attention.qkv":
        return {f"{old}.{BLOCK[found[3]]}.weight": tensor}
    size = options.head_size or (options.width // options.heads)
    kv = (options.kv_heads or options.heads) * size
    parts = torch.split(tensor, [options.heads * size, kv, kv])
    return {f"{old}.{part}.weight": piece.clone() for part, piece in zip(QKV, parts, strict=True)}


def build_stack_wise(options: Any, context: BuildContext) -> StackWiseFormat:
    """The factory."""
    return StackWiseFormat()
