"""What a frozen prefix makes of a row, computed once (`model.cache: frozen`).

The hidden state in front of the lowest trained block depends on the row and on frozen parameters alone. So it is kept under a digest of
the row's own numbers: a row that comes again finds its state, and one that is masked otherwise is another row. Each row is computed
by itself, so that what is kept does not depend on the rows beside it, nor on what was kept before a stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stackwise.contracts.answers import calling, expect
from stackwise.contracts.protocols import Batch, PartwiseRack
from stackwise.curriculum.states import ModelState
from stackwise.errors import UserError
from stackwise.planes.model.module import Model
from stackwise.planes.model.row_store import RowStore

_LOOKUPS = 20_000
"""Number of rows after which a store in which no row was ever found again is an error."""


class FrozenPrefix:
    """The frozen blocks at the start of a model, and their outputs for the rows seen so far.

    Args:
        model: wired, with its trained parameters marked.
        blocks: how many blocks are in front of the lowest trained one.
        folder: says on which disk the kept states lie, once there are some.
    """

    def __init__(self, model: Model, blocks: int, folder: Callable[[], Path | None]) -> None:
        self.blocks = blocks
        self._model, self._folder = model, folder
        self._stores: dict[tuple[tuple[int, ...], torch.dtype], RowStore] = {}
        self._form: dict[tuple[Any, ...], tuple[tuple[int, ...], torch.dtype]] = {}
        """Shapes of a row's fields → shape and dtype of what is kept."""
        self._digest = b""
        """Of what is frozen when the first row was computed; what is kept holds for these numbers."""
        self.found = self.computed = 0
        """Rows that were there, and rows that were not."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a model (a reference, an average) keeps nothing."""
        return

    def take_over(self, other: FrozenPrefix) -> None:
        """Go on with what another one kept, if it holds here too."""
        if other.blocks == self.blocks and other._digest and other._digest == _digest(self._model):
            self._stores, self._form, self._digest = other._stores, other._form, other._digest

    def continued(self, batch: Batch) -> torch.Tensor:
        """The hidden state after the rack: kept or computed in front of the lowest trained block, and from there on with gradients.

        Raises:
            UserError: what enters the lowest trained block is drawn, or trained.
            DiskError: the disk is full.
        """
        return self._run(self.entering(batch), self.blocks, None, batch)

    def entering(self, batch: Batch) -> torch.Tensor:
        """The hidden state that enters the lowest trained block, [rows, ...]."""
        fields = {name: batch[name] for name in sorted(self._model.reads) if name in batch}
        if any(field.is_meta for field in fields.values()):
            return self._made(batch)
        form = tuple((name, field.shape[1:], field.dtype) for name, field in fields.items())
        keys, device = row_keys(fields), next(iter(fields.values())).device
        known = form in self._form
        store = self._stores[self._form[form]] if known else None
        for i, key in enumerate(keys):
            if store is not None and key in store:
                self.found += 1
                continue
            row = {name: field[i : i + 1] for name, field in fields.items()}
            made = self._checked(row) if store is None else self._made(row)
            if store is None:
                self._form[form] = where = tuple(made.shape[1:]), made.dtype
                store = self._stores.setdefault(where, RowStore(self._folder(), *where))
            store.put(key, made[0])
            self.computed += 1
        self._check_use()
        assert store is not None  # a batch has a row
        return store.get(keys).to(device)

    def _run(self, hidden: torch.Tensor, start: int, stop: int | None, batch: Batch) -> torch.Tensor:
        rack: Any = self._model.rack
        with calling(self._model.components.get("rack", ""), "forward_blocks"):
            made: torch.Tensor = rack.forward_blocks(hidden, start, stop, **self._model.side(batch))
            expect(isinstance(made, torch.Tensor) and made.dim() == hidden.dim(), made, f"a tensor of {hidden.dim()} dimensions")
        return made

    def measured(self, batch: Batch) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of what is kept of each row of a batch.

        Raises:
            UserError: something trained lies in front of the lowest trained block.
        """
        made = self._made(batch)
        return tuple(made.shape[1:]), made.dtype

    def _made(self, row: Batch) -> torch.Tensor:
        made = self._run(self._model.into_rack(row, {}), 0, self.blocks, row)
        if made.requires_grad:
            raise UserError(
                "model.cache: something trained lies in front of the lowest trained block (a table of positions, a norm, an adapter): "
                "freeze it too, or leave model.cache out"
            )
        return made

    def _checked(self, row: Batch) -> torch.Tensor:
        """The first row of a form, computed twice, with streams that go on."""
        self._digest = self._digest or _digest(self._model)
        made = self._made(row)
        if not torch.equal(made, self._made(row)):
            raise UserError(
                "model.cache: one row gives two different hidden states in front of the lowest trained block, so something in front of it "
                "draws (dropout outside the frozen blocks): take it away, or leave model.cache out"
            )
        return made

    def _check_use(self) -> None:
        if self.computed >= _LOOKUPS and not self.found:
            raise UserError(
                f"model.cache: none of {self.computed:,} rows came a second time as it was, so what is kept serves nobody: leave "
                "model.cache out, or read rows that come again as they are"
            )


def row_keys(fields: Mapping[str, torch.Tensor]) -> list[bytes]:
    """A digest of the numbers of each row, names and shapes included."""
    rows = len(next(iter(fields.values())))
    digests = [blake2b(digest_size=16) for _ in range(rows)]
    for name, field in fields.items():
        mark = f"{name} {list(field.shape[1:])} {field.dtype} ".encode()
        values = field.detach().cpu().contiguous().view(rows, -1).view(torch.uint8).numpy()
        for digest, row in zip(digests, values, strict=True):
            digest.update(mark)
            digest.update(row.tobytes())
    return [digest.digest() for digest in digests]


def find_prefix(model: Model, state: ModelState, *, gated: bool, folder: Callable[[], Path | None]) -> FrozenPrefix:
    """The frozen prefix of a model as declared.

    Raises:
        UserError: nothing is frozen in front, the rack cannot run from a block, or what enters the lowest trained block follows time.
    """
    rack, spec = model.rack, model.rack_spec
    if not isinstance(rack, PartwiseRack) or not spec.stacks:
        raise UserError(f"model.cache: {state.rack.id} cannot run from a block on (`forward_blocks`): leave model.cache out")
    paths = [spec.block_path.format(stack=stack, index=i) for stack, count in spec.stacks.items() for i in range(count)]
    blocks = next((i for i, path in enumerate(paths) if _learns(model, path)), len(paths))
    if not blocks or any(p.requires_grad for p in model.embedding.parameters()):
        raise UserError(
            "model.cache: there is nothing to keep, as the embedding or the first block is trained: freeze both (`model.freeze`), or leave "
            "model.cache out"
        )
    if why := _moving(model, state, gated=gated):
        raise UserError(f"model.cache: {why}, so what enters the lowest trained block follows time: leave model.cache out")
    return FrozenPrefix(model, blocks, folder)


def _learns(model: Model, path: str) -> bool:
    """Whether a block of the rack has something to learn, in itself or in an adapter beside one of its matrices."""
    where = f"rack.{path}"
    beside = [adapter for (_, at), adapter in model.attached.items() if at == where or at.startswith(f"{where}.")]
    modules: list[nn.Module] = [model.get_submodule(where), *beside]
    return any(p.requires_grad for module in modules for p in module.parameters())


def _moving(model: Model, state: ModelState, *, gated: bool) -> str:
    """Why what the prefix makes is not the same at every step; empty where it is."""
    parts = {"embedding": state.embedding, "rack": state.rack}
    parts |= {f"adapters.embedding-rack[{i}]": part for i, part in enumerate(state.adapters.get("embedding-rack", ()))}
    parts |= {f"weight_adapters.{name}": adapter.part for name, adapter in state.weight_adapters.items()}
    for where, part in parts.items():
        if moving := [name for name, curve in part.curves.items() if not curve.is_constant]:
            return f"{', '.join(moving)} of model.{where} follows a schedule"
    if gated:
        return "new blocks open by a gate"
    if state.frozen_mode == "train":
        return "frozen_mode is train"
    if model.reported:
        return f"a part of the model adds {', '.join(model.reported)} to the loss"
    return "the embedding makes side inputs of the rack" if model.embeds_side else ""


def _digest(model: Model) -> bytes:
    """Of everything in front of the head that does not change."""
    digest = blake2b(digest_size=16)
    still = {name: p for name, p in model.named_parameters() if not p.requires_grad} | dict(model.named_buffers())
    for name, tensor in still.items():
        if not name.startswith("head."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()
