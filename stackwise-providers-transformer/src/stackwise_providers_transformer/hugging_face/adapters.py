"""Low-rank adapters in files of peft: `adapter_config.json` and `adapter_model.safetensors`, beside the folder of a base model.

Read, they are added to the matrices that they stand beside: W + scale · B·A, the scale alpha/r, or alpha/sqrt(r) with `use_rslora`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stackwise import UserError
from stackwise_providers_transformer.hugging_face.architecture import Architecture
from stackwise_providers_transformer.hugging_face.names import Names, Turned
from stackwise_providers_transformer.hugging_face.shards import Shards
from stackwise_providers_transformer.lora import LoRA

ADAPTER_CONFIG, ADAPTERS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_USED = (
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "use_rslora",
)
_WITHOUT_EFFECT = (
    "auto_mapping",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
"""Fields that change nothing of given tensors: where adapters stand is what the tensors' names say."""
_MODULE = r"(.*\.)?({key})$"
"""Which modules a key of `rank_pattern` or `alpha_pattern` means, as peft reads it."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters beside a base, or only some of the files of such a folder and no model."""
    if (folder / ADAPTER_CONFIG).is_file():
        return True
    return not (folder / "config.json").is_file() and any((folder / name).is_file() for name in (ADAPTERS, PICKLED))


def check_file(folder: Path) -> None:
    """Refuse a folder without the one file of adapters that is read.

    Raises:
        UserError: adapters that are pickled only, or none.
    """
    if (folder / ADAPTERS).is_file():
        return
    if (folder / PICKLED).is_file():
        raise UserError(
            f"{folder / PICKLED}: pickled adapters are not read, for unpickling can run code, and there is no {ADAPTERS} beside it: load "
            "them with peft, and write them anew with `save_pretrained`, which makes that file"
        )
    raise UserError(f"{folder / ADAPTERS} is missing, and {ADAPTER_CONFIG} says that the folder holds adapters: fetch it again")


def read_fields(folder: Path) -> dict[str, Any]:
    """The fields of `adapter_config.json`.

    Raises:
        UserError: no map, a field with an effect that is not known here, or a value that no scale can be made of, by name.
    """
    path = folder / ADAPTER_CONFIG
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it holds no map")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type: {fields.get('peft_type')!r}: adapters of type LORA alone are read")
    plain = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}
    for name, values in plain.items():
        if name in fields and fields[name] not in values:
            raise UserError(f"{path}: {name}: {fields[name]!r}: the base itself is another then; only {values} are read")
    for name, value in fields.items():
        if value and name not in (*_USED, *_WITHOUT_EFFECT):
            raise UserError(f"{path}: {name}: {value!r}: unknown here, so that what the adapters compute is not certain")
    _check_values(path, fields)
    return fields


def _check_values(path: Path, fields: Mapping[str, Any]) -> None:
    """Refuse ranks, alphas and patterns that no scale can be made of."""
    kinds = {"use_rslora": (_is_bool, "true or false"), "lora_dropout": (_is_number, "a number")}
    kinds |= {"r": (_is_rank, "a whole number from 1 on"), "lora_alpha": (_is_number, "a number")}
    for name, (fits, form) in kinds.items():
        if name in fields and not fits(fields[name]):
            raise UserError(f"{path}: {name}: {fields[name]!r} is not {form}")
    for pattern, (fits, form) in {"rank_pattern": kinds["r"], "alpha_pattern": kinds["lora_alpha"]}.items():
        own = {} if fields.get(pattern) is None else fields[pattern]
        if not isinstance(own, dict):
            raise UserError(f"{path}: {pattern}: {own!r} is not a map from patterns of names of modules to values")
        for key, value in own.items():
            try:
                re.compile(_MODULE.format(key=key))
            except (re.error, OverflowError, RecursionError) as error:
                raise UserError(f"{path}: {pattern}: {key!r} is not a regular expression for names of modules: {error}") from None
            if not fits(value):
                raise UserError(f"{path}: {pattern}: {key!r}: {value!r} is not {form}")


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def notes_of(folder: Path, base: Path) -> Iterator[str]:
    """What becomes of adapters, and what is not taken over."""
    yield f"the adapters are added to the matrices of {base}: adapters of this run are others, beside those"
    if dropout := read_fields(folder).get("lora_dropout"):
        yield f"lora_dropout: {dropout} is not taken over: adapters of this run have the option `dropout` of transformer.lora"


def base_of(folder: Path) -> Path:
    """The folder of the base model that adapters stand beside.

    Raises:
        UserError: it is not a folder on this machine.
    """
    name = read_fields(folder).get("base_model_name_or_path")
    for place in (folder / str(name), Path(str(name))) if name else ():
        if (place / "config.json").is_file():
            return place
    raise UserError(
        f"{folder / ADAPTER_CONFIG}: base_model_name_or_path: {name!r} is not a folder with a model, and nothing is downloaded: write the "
        "path of the base model's folder"
    )


class Adapted(Mapping[str, torch.Tensor]):
    """The tensors of a base with the adapters of a folder added, one at a time.

    Args:
        base: tensors of the base model by their names.
        folder: with the adapters.
        turned: names of matrices that stand on their side.

    Raises:
        UserError: a damaged file, or a tensor that is not an adapter of a matrix of the base.
    """

    def __init__(self, base: Shards, folder: Path, turned: frozenset[str]) -> None:
        fields = read_fields(folder)
        self.folder, self.shapes, self._base, self._turned = folder, base.shapes, base, turned
        self._adapters = Shards(folder, pickled=False, file=ADAPTERS)
        self._scales: dict[str, float] = {}
        for name in self._adapters:
            module, end, _ = name.removeprefix(_PREFIX).partition(".lora_")
            ends = [f"{name.partition('.lora_')[0]}.lora_{half}.weight" for half in "AB"]
            if not end or not name.startswith(_PREFIX) or name not in ends or not all(each in self._adapters for each in ends):
                raise UserError(f"{folder / ADAPTERS}: {name} is not a half of a pair {_PREFIX}….lora_A and lora_B beside a matrix")
            matrix = self._beside(module, ends)
            self._scales[matrix] = _scale(module, self._adapters.shapes[ends[0]][0], folder, fields)

    def _beside(self, module: str, ends: list[str]) -> str:
        """The matrix of the base that a pair stands beside, its shape checked."""
        for each in ends:
            if len(own := self._adapters.shapes[each]) != 2:
                raise UserError(f"{self.folder / ADAPTERS}: {each} {list(own)} is not a matrix: adapters beside matrices alone are read")
        (rank, inputs), (outputs, again) = (self._adapters.shapes[each] for each in ends)
        name = f"{module}.weight"
        if name not in self._base:
            raise UserError(f"{self.folder / ADAPTERS}: {ends[0]}: {self._base.folder} has no {name}")
        shape = (inputs, outputs) if name in self._turned else (outputs, inputs)
        if rank != again or shape != self.shapes[name]:
            raise UserError(
                f"{self.folder / ADAPTERS}: {ends[0]} [{rank}, {inputs}] and {ends[1]} [{outputs}, {again}] do not fit {name} "
                f"{list(self.shapes[name])}"
            )
        return name

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._base[name]
        if name not in self._scales:
            return weight
        precise = torch.promote_types(weight.dtype, torch.float32)
        module = _PREFIX + name.removesuffix(".weight")
        a, b = (self._adapters[f"{module}.lora_{half}.weight"].to(precise) for half in "AB")
        added = b @ a * self._scales[name]
        return (weight.to(precise) + (added.t() if name in self._turned else added)).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def _scale(module: str, rank: int, folder: Path, fields: Mapping[str, Any]) -> float:
    """The factor on B·A of one module.

    Raises:
        UserError: the tensors have another rank than the fields say.
    """

    def own(pattern: str, default: Any) -> Any:
        named = fields.get(pattern) or {}
        return next((value for key, value in named.items() if re.match(_MODULE.format(key=key), module)), default)

    declared, alpha = own("rank_pattern", fields.get("r", 8)), own("alpha_pattern", fields.get("lora_alpha", 8))
    if declared != rank:
        raise UserError(f"{folder / ADAPTER_CONFIG}: {module} has rank {declared} there, and {rank} in {ADAPTERS}")
    return float(alpha / (rank**0.5 if fields.get("use_rslora") else rank))


def turned_matrices(names: Names, blocks: int) -> frozenset[str]:
    """The matrices of a family that stand on their side."""
    return frozenset(their for _, form in names.entries(blocks) if isinstance(form, Turned) for their in form.theirs)


def write_adapters(attached: Mapping[tuple[str, str], Any], names: Names, sizes: Architecture, base: str, folder: Path) -> None:
    """Write the adapters of a model.

    Args:
        attached: (name, path of the adapted module) → the adapter.
        names: the table of the base's family.
        sizes: of the model.
        base: what `base_model_name_or_path` says.
        folder: there already.

    Raises:
        UserError: adapters that are not LoRA, of several names, or beside a matrix that theirs holds together with another.
    """
    if len(adapters := sorted({name for name, _ in attached})) > 1:
        raise UserError(f"such a folder holds adapters of one name, and this model has {', '.join(adapters)}: merge all but one")
    tensors = _their_pairs({f"{path}.weight": adapter for (_, path), adapter in attached.items()}, names, sizes)
    modules = {name.partition(".lora_")[0].removeprefix(_PREFIX) for name in tensors}
    options = next(iter(attached.values())).options
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": options.rank,
        "lora_alpha": options.alpha,
        "use_rslora": options.scaling != "alpha/rank",
        "lora_dropout": options.dropout,
        "bias": "none",
        "fan_in_fan_out": bool(modules & {name.removesuffix(".weight") for name in turned_matrices(names, sizes["rack.blocks"])}),
        "inference_mode": True,
        "target_modules": sorted(modules),
    }
    save_file(tensors, folder / ADAPTERS, {"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _their_pairs(beside: dict[str, Any], names: Names, sizes: Architecture) -> dict[str, torch.Tensor]:
    """Their tensors of the adapters beside our matrices: several for one of ours have the whole A and their rows of B each."""
    if strange := [path for path, adapter in beside.items() if not isinstance(adapter, LoRA)]:
        raise UserError(f"the adapter beside {strange[0]} is not transformer.lora, and files of peft have no words for it here")
    tensors: dict[str, torch.Tensor] = {}
    for ours, form in names.entries(sizes["rack.blocks"]):
        found = [beside.pop(name) for name in ours if name in beside]
        if found and len(ours) > 1:
            raise UserError(f"{' and '.join(ours)} are one matrix in such a folder, {form.theirs[0]}: merge the adapters beside them")
        for adapter in found:
            b = adapter.b.detach()
            parts = [b] if isinstance(form, Turned) else form.store([b], sizes)
            for their, part in zip(form.theirs, parts, strict=True):
                module = _PREFIX + their.removesuffix(".weight")
                tensors[f"{module}.lora_A.weight"] = adapter.a.detach().clone()
                tensors[f"{module}.lora_B.weight"] = part.clone(memory_format=torch.contiguous_format)
    if beside:
        raise UserError(f"the folder's family has no place for adapters beside {', '.join(sorted(beside)[:5])}")
    return tensors
