"""Low-rank adapters in files of peft: `adapter_config.json` and `adapter_model.safetensors`, beside the folder of a base model.

Read, they are added to the matrices that they stand beside: W + scale · B·A, the scale alpha/r, or alpha/sqrt(r) with `use_rslora`; or they
become weight adapters of the run (`beside.py`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from stackwise import UserError
from stackwise_providers_transformer.hugging_face.shards import ShapedTensors, Shards

ADAPTER_CONFIG, ADAPTERS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
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
    """What becomes of adapters that are added to a base, and what is not taken over."""
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


@frozen(kw_only=True)
class Pair:
    """A and B beside one matrix of a base, by the names of their file."""

    a: str
    b: str
    rank: int
    alpha: float


class Pairs:
    """The adapters of a folder, each checked against the matrix of the base that it stands beside.

    Args:
        base: tensors of the base model by their names.
        folder: with the adapters.
        turned: names of matrices that stand on their side.

    Raises:
        UserError: a damaged file, or a tensor that is not an adapter of a matrix of the base.
    """

    def __init__(self, base: ShapedTensors, folder: Path, turned: frozenset[str]) -> None:
        self.fields, self.folder, self.turned = read_fields(folder), folder, turned
        self.tensors = Shards(folder, pickled=False, file=ADAPTERS)
        self.beside: dict[str, Pair] = {}
        """Name of a matrix → its adapter."""
        for name in self.tensors:
            module, end, _ = name.removeprefix(PREFIX).partition(".lora_")
            ends = [f"{name.partition('.lora_')[0]}.lora_{half}.weight" for half in "AB"]
            if not end or not name.startswith(PREFIX) or name not in ends or not all(each in self.tensors for each in ends):
                raise UserError(f"{folder / ADAPTERS}: {name} is not a half of a pair {PREFIX}….lora_A and lora_B beside a matrix")
            rank = self._fitting(base, module, ends)
            self.beside[f"{module}.weight"] = Pair(a=ends[0], b=ends[1], rank=rank, alpha=_alpha(module, rank, folder, self.fields))

    def _fitting(self, base: ShapedTensors, module: str, ends: list[str]) -> int:
        """The rank of a pair, its shapes checked."""
        for each in ends:
            if len(own := self.tensors.shapes[each]) != 2:
                raise UserError(f"{self.folder / ADAPTERS}: {each} {list(own)} is not a matrix: adapters beside matrices alone are read")
        (rank, inputs), (outputs, again) = (self.tensors.shapes[each] for each in ends)
        name = f"{module}.weight"
        if name not in base:
            raise UserError(f"{self.folder / ADAPTERS}: {ends[0]}: {base.folder} has no {name}")
        shape = (inputs, outputs) if name in self.turned else (outputs, inputs)
        if rank != again or shape != base.shapes[name]:
            raise UserError(
                f"{self.folder / ADAPTERS}: {ends[0]} [{rank}, {inputs}] and {ends[1]} [{outputs}, {again}] do not fit {name} "
                f"{list(base.shapes[name])}"
            )
        return rank

    @property
    def by_root(self) -> bool:
        """Whether alpha is divided by the square root of the rank."""
        return bool(self.fields.get("use_rslora"))


class Adapted(Mapping[str, torch.Tensor]):
    """The tensors of a base with the adapters of a folder added, one at a time.

    Args:
        base: tensors of the base model by their names.
        pairs: the adapters beside them.
    """

    def __init__(self, base: ShapedTensors, pairs: Pairs) -> None:
        self.folder, self.shapes, self._base, self._pairs = pairs.folder, base.shapes, base, pairs

    def __getitem__(self, name: str) -> torch.Tensor:
        weight = self._base[name]
        if (pair := self._pairs.beside.get(name)) is None:
            return weight
        precise = torch.promote_types(weight.dtype, torch.float32)
        a, b = (self._pairs.tensors[each].to(precise) for each in (pair.a, pair.b))
        added = b @ a * (pair.alpha / (pair.rank**0.5 if self._pairs.by_root else pair.rank))
        return (weight.to(precise) + (added.t() if name in self._pairs.turned else added)).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self.shapes)


def _alpha(module: str, rank: int, folder: Path, fields: Mapping[str, Any]) -> float:
    """The alpha of one module.

    Raises:
        UserError: the tensors have another rank than the fields say.
    """

    def own(pattern: str, default: Any) -> Any:
        named = fields.get(pattern) or {}
        return next((value for key, value in named.items() if re.match(_MODULE.format(key=key), module)), default)

    if (declared := own("rank_pattern", fields.get("r", 8))) != rank:
        raise UserError(f"{folder / ADAPTER_CONFIG}: {module} has rank {declared} there, and {rank} in {ADAPTERS}")
    return float(own("alpha_pattern", fields.get("lora_alpha", 8)))
