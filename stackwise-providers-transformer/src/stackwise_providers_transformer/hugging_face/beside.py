"""Adapters in files of peft that stay adapters: read as the weight adapters of a run, which trains them on, and written as such files.

Queries, keys and values are one matrix here and three in most folders: each of their three adapters stands beside its own rows of ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from safetensors.torch import save_file

from stackwise import UserError
from stackwise_providers_transformer.hugging_face.adapters import ADAPTER_CONFIG, ADAPTERS, PREFIX, Pair, Pairs
from stackwise_providers_transformer.hugging_face.architecture import STACK, Architecture
from stackwise_providers_transformer.hugging_face.names import Form, Names, Stacked, Turned
from stackwise_providers_transformer.hugging_face.shards import ShapedTensors
from stackwise_providers_transformer.lora import LoRA

BESIDE = "weight_adapters."


@frozen
class Place:
    """Where one of their matrices is in ours."""

    path: str
    """Of our module."""
    rows: tuple[int, int] | None
    form: Form
    alone: bool
    """Whether theirs is no more than this matrix of ours."""


@frozen(kw_only=True)
class Matrices:
    """Which of their matrices is which of ours, in a folder that adapters stand beside."""

    places: Mapping[str, Place]
    theirs: str
    """What names of block `{i}` begin with in the folder."""
    ours: str
    """What names of all blocks begin with here; the number of a block follows."""
    blocks: int
    turned: frozenset[str]
    """Those of theirs that stand on their side."""
    sizes: Architecture


def matrices_of(names: Names, sizes: Architecture) -> Matrices:
    """The matrices of a family that is known here by itself."""
    return Matrices(
        places=dict(_places(names, sizes)),
        theirs=names.block,
        ours=f"rack.stacks.{STACK}.",
        blocks=sizes["rack.blocks"],
        turned=frozenset(their for _, form in names.entries(sizes["rack.blocks"]) if isinstance(form, Turned) for their in form.theirs),
        sizes=sizes,
    )


def _places(names: Names, sizes: Architecture) -> Iterator[tuple[str, Place]]:
    """Their matrices, and ours."""
    for ours, form in names.entries(sizes["rack.blocks"]):
        if not ours[0].endswith(".weight"):
            continue
        path, rows = ours[0].removesuffix(".weight"), _rows(form, sizes)
        yield from ((their, Place(path, own, form, len(ours) == 1)) for their, own in zip(form.theirs, rows, strict=True))


def _rows(form: Form, sizes: Architecture) -> list[tuple[int, int] | None]:
    """The rows of our matrix that each of theirs is; None: all."""
    if not isinstance(form, Stacked):
        return [None] * len(form.theirs)
    heads, kv_heads, features = (sizes[f"rack.{name}"] for name in ("heads", "kv_heads", "head_size"))
    ends = [heads * features, (heads + kv_heads) * features, (heads + 2 * kv_heads) * features]
    return list(zip([0, *ends[:-1]], ends, strict=True))


@frozen(eq=False)
class Beside(Mapping[str, torch.Tensor]):
    """The tensors of a base, and those of the adapters beside it, by our names; made when they are asked for."""

    base: ShapedTensors
    pairs: Pairs
    sizes: Architecture
    made: Mapping[str, tuple[str, Form | None]]
    """Our name of A or B → theirs, and for B what it is to ours."""
    shapes: Mapping[str, tuple[int, ...]]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.made:
            return self.base[name]
        theirs, form = self.made[name]
        tensor = self.pairs.tensors[theirs]
        return tensor if form is None or isinstance(form, Turned | Stacked) else form.load([tensor], self.sizes)[0]

    def copy_into(self, name: str, target: torch.Tensor) -> torch.dtype:
        """Write a tensor where it belongs; those of the base in their own way."""
        write = None if name in self.made else getattr(self.base, "copy_into", None)
        if write is not None:
            dtype: torch.dtype = write(name, target)
            return dtype
        tensor = self[name]
        target.copy_(tensor)
        return tensor.dtype

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        yield from self.made

    def __len__(self) -> int:
        return len(self.shapes)


def read_beside(base: ShapedTensors, pairs: Pairs, matrices: Matrices) -> tuple[dict[str, dict[str, Any]], Beside]:
    """The section `weight_adapters` of a folder of adapters, and all tensors by our names.

    Args:
        base: tensors of the base by our names.
        pairs: the adapters.
        matrices: of the base.

    Adapters of one kind of matrix, of one rank and one alpha, have one name: `self_attn_q_proj`.

    Raises:
        UserError: an adapter beside a matrix that is several of ours.
    """
    places = matrices.places
    kinds: dict[tuple[str, int, float], list[tuple[Place, Pair]]] = {}
    for matrix, pair in pairs.beside.items():
        if matrix not in places or not (place := places[matrix]).alone:
            raise UserError(
                f"{pairs.folder / ADAPTERS}: {matrix} is no matrix by itself here, so its adapter cannot stay one: leave `adapters` "
                "of the format out, which adds it to its base"
            )
        kinds.setdefault((_kind(matrix, matrices.theirs), pair.rank, pair.alpha), []).append((place, pair))
    count = Counter(kind for kind, _, _ in kinds)
    nodes, made, shapes = {}, {}, dict(base.shapes)
    for (kind, rank, alpha), found in sorted(kinds.items()):
        name = kind if count[kind] == 1 else f"{kind}_{rank}_{alpha:g}".replace(".", "_").replace("-", "_")
        nodes[name] = _node(pairs, rank, alpha, found, matrices)
        for place, pair in found:
            for half, theirs, form in (("a", pair.a, None), ("b", pair.b, place.form)):
                ours = f"{BESIDE}{name}.{place.path}.{half}"
                made[ours], shapes[ours] = (theirs, form), pairs.tensors.shapes[theirs]
    return nodes, Beside(base, pairs, matrices.sizes, made, shapes)


def _kind(matrix: str, block: str) -> str:
    """The name of an adapter by the module that it stands beside, whatever block it is in."""
    before, _, behind = block.partition("{i}.")
    module = matrix.removesuffix(".weight")
    inside = module.removeprefix(before).partition(".")[2] if module.startswith(before) and behind == "" else module
    return inside.replace(".", "_")


def _node(pairs: Pairs, rank: int, alpha: float, found: list[tuple[Place, Pair]], matrices: Matrices) -> dict[str, Any]:
    place, paths = found[0][0], [place.path for place, _ in found]
    inside = place.path.startswith(matrices.ours)
    ending = place.path.removeprefix(matrices.ours).partition(".")[2]
    select = [f"{matrices.ours}*.{ending}.weight"] if inside and len(paths) == matrices.blocks else [f"{path}.weight" for path in paths]
    node: dict[str, Any] = {"use": "transformer.lora", "select": select, "rank": rank, "alpha": alpha}
    node |= {"scaling": "alpha/sqrt(rank)"} if pairs.by_root else {}
    node |= {"rows": list(place.rows)} if place.rows is not None else {}
    return node | ({"dropout": pairs.fields["lora_dropout"]} if pairs.fields.get("lora_dropout") else {})


def write_beside(attached: Mapping[tuple[str, str], Any], matrices: Matrices, base: str, folder: Path) -> None:
    """Write the adapters of a model.

    Args:
        attached: (name, path of the adapted module, of one stack) → the adapter.
        matrices: of the base.
        base: what `base_model_name_or_path` says.
        folder: there already.

    Raises:
        UserError: adapters that are no LoRA, two beside one matrix, of several scalings, or beside a matrix that theirs holds together
            with another.
    """
    tensors, of = _their_pairs(attached, matrices)
    scalings = {adapter.options.scaling for adapter in of.values()}
    if len(scalings) > 1:
        raise UserError(f"such a folder has one scaling for all adapters, and this model has {' and '.join(sorted(scalings))}")
    ranks, alphas = ({module: getattr(adapter.options, name) for module, adapter in of.items()} for name in ("rank", "alpha"))
    (rank, _), (alpha, _) = (Counter(each.values()).most_common(1)[0] for each in (ranks, alphas))
    fields = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: own for module, own in sorted(ranks.items()) if own != rank},
        "alpha_pattern": {module: own for module, own in sorted(alphas.items()) if own != alpha},
        "use_rslora": scalings != {"alpha/rank"},
        "lora_dropout": max(adapter.options.dropout for adapter in of.values()),
        "bias": "none",
        "fan_in_fan_out": bool(of.keys() & {name.removesuffix(".weight") for name in matrices.turned}),
        "inference_mode": True,
        "target_modules": sorted(of),
    }
    save_file(tensors, folder / ADAPTERS, {"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _their_pairs(attached: Mapping[tuple[str, str], Any], matrices: Matrices) -> tuple[dict[str, torch.Tensor], dict[str, LoRA]]:
    """Their tensors of the adapters beside our matrices, and the adapter of each of their modules.

    One beside several of theirs at once gives each of them the whole A and its rows of B.
    """
    left, tensors, of = dict(attached), {}, {}
    for their, place in matrices.places.items():
        for (name, path), adapter in attached.items():
            if path != place.path:
                continue
            left.pop((name, path), None)
            if not isinstance(adapter, LoRA):
                raise UserError(f"the adapter beside {path} is not a transformer.lora, and files of peft cannot express it")
            if not place.alone:
                raise UserError(f"{path} is one of several in {their} of such a folder: merge the adapters beside it")
            if (b := _rows_of(adapter, place, matrices.sizes)) is None:
                continue
            module = their.removesuffix(".weight")
            if module in of:
                raise UserError(f"such a folder holds one adapter beside {module}, and this model has two, {name} the second: merge one")
            of[module] = adapter
            tensors[f"{PREFIX}{module}.lora_A.weight"] = adapter.a.detach().clone()
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b.clone(memory_format=torch.contiguous_format)
    if left:
        raise UserError(f"the folder's family has no place for adapters beside {', '.join(sorted(path for _, path in left)[:5])}")
    return tensors, of


def _rows_of(adapter: LoRA, place: Place, sizes: Architecture) -> torch.Tensor | None:
    """Their B of an adapter beside our matrix; None where it adds nothing to these rows.

    Raises:
        UserError: rows that are neither all of ours nor all of theirs.
    """
    b, own = adapter.b.detach(), adapter.options.rows
    if place.rows is None:
        if own is not None:
            raise UserError(f"the adapter beside {place.path} has the rows {list(own)} of one matrix of theirs: merge it")
        return b if isinstance(place.form, Turned) else place.form.store([b], sizes)[0]
    first, end = place.rows
    if own is None or (own[0] <= first and end <= own[1]):
        start = 0 if own is None else own[0]
        return b[first - start : end - start]
    if own[1] <= first or end <= own[0]:
        return None
    raise UserError(
        f"the adapter beside {place.path} has the rows {list(own)}, which are a part of {list(place.rows)}, one matrix of theirs"
    )
