"""The tensors of a folder: read one at a time from memory-mapped files, and written into files of a bounded size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from stackwise import UserError
from stackwise_providers_transformer.hugging_face.architecture import Architecture
from stackwise_providers_transformer.hugging_face.names import Form, Names, Plain, Stacked

ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class ShapedTensors(Protocol):
    """Tensors of a folder by their own names, with their shapes."""

    folder: Path
    shapes: dict[str, tuple[int, ...]]

    def __getitem__(self, name: str, /) -> torch.Tensor:
        """One tensor."""
        ...

    def __iter__(self) -> Iterator[str]:
        """Their names."""
        ...

    def __contains__(self, name: object, /) -> bool:
        """Whether there is one of that name."""
        ...


def holds_pickles_only(folder: Path, file: str = ONE) -> bool:
    """Whether the weights of a folder are pickled, and in no other file."""
    return not any((folder / name).is_file() for name in (file, INDEX)) and any((folder / name).is_file() for name in PICKLES)


def refuse_pickles(folder: Path) -> UserError:
    """The error of a folder that holds pickles only, where nobody asked for them to be read."""
    return UserError(
        f"{folder} holds its weights pickled only ({PICKLES[0]}), and unpickling can run code: convert them to safetensors, or "
        "write `format: {use: transformer.hf, pickle: true}` beside `from` to have tensors alone unpickled"
    )


class Shards(Mapping[str, torch.Tensor]):
    """The tensors of a folder by their own names.

    Args:
        folder: with one safetensors file, or an index and its shards.
        pickled: whether a folder that holds pickled files only is read from those.
        file: name of the one file, in folders of another kind.

    Raises:
        UserError: no such file, one that is missing or damaged, or a tensor that holds no floating-point numbers.
    """

    def __init__(self, folder: Path, *, pickled: bool, file: str = ONE) -> None:
        self.folder, self._one = folder, file
        self._pickles: dict[str, Any] = {}
        self._of: dict[str, str] = {}
        self._mapped: tuple[str, Any] | None = None
        self._touched = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        if holds_pickles_only(folder, self._one):
            if not pickled:
                raise refuse_pickles(folder)
            self._read_pickles()
            return
        for file, names in self._listed().items():
            opened = self._open(file)
            held = set(opened.keys())
            if names is not None and (missing := sorted(names - held)):
                raise UserError(f"{folder / file}: the index names {missing[0]}, which is not in it: fetch the folder again")
            for name in sorted(held if names is None else names):
                part = opened.get_slice(name)
                if part.get_dtype() not in FLOATS:
                    raise UserError(
                        f"{folder / file}: {name} is of dtype {part.get_dtype()}: only {', '.join(FLOATS)} are read; a quantized model is "
                        "to be turned into floating-point numbers first"
                    )
                self._of[name], self.shapes[name] = file, tuple(part.get_shape())
        self._most = max(map(prod, self.shapes.values()), default=0)

    def _listed(self) -> dict[str, set[str] | None]:
        """File → the tensors that the index says are in it; all for the one file of a folder without an index."""
        if (self.folder / self._one).is_file():
            return {self._one: None}
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files: dict[str, set[str] | None] = {}
            for name, file in index.items():
                if Path(file).name != file:
                    raise UserError(f"{self.folder / INDEX}: {file!r} is not a name of a file beside it")
                names = files.setdefault(file, set())
                assert names is not None
                names.add(name)
        except FileNotFoundError:
            raise UserError(f"{self.folder} holds no weights: there is neither {self._one} nor {INDEX}") from None
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{self.folder / INDEX} is not an index of shards: {type(error).__name__}: {error}") from None
        return files

    def _open(self, file: str) -> Any:
        if not (self.folder / file).is_file():
            raise UserError(f"{self.folder / file} is missing, and the index names it: fetch the folder again")
        try:
            return safe_open(self.folder / file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.folder / file} is not a whole safetensors file: {error}: fetch it again") from None

    def _opened(self, name: str) -> Any:
        """The file of a tensor. What was read of a mapped file counts as this process's memory until it is unmapped, so a file is mapped
        anew before more than the largest tensor has been read."""
        file, size = self._of[name], prod(self.shapes[name])
        if self._mapped is None or self._mapped[0] != file or self._touched + size > self._most:
            self._mapped, self._touched = (file, self._open(file)), 0
        self._touched += size
        return self._mapped[1]

    def _read_pickles(self) -> None:
        """Tensors alone, by memory map: the unpickler that torch restricts to them."""
        one = self.folder / PICKLES[0]
        files = [one] if one.is_file() else sorted(self.folder.glob("pytorch_model-*.bin"))
        for file in files:
            try:
                held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except Exception as error:  # whatever a damaged or hostile pickle makes of the loader
                raise UserError(f"{file} cannot be unpickled as tensors alone: {type(error).__name__}: {error}") from None
            self._pickles[file.name] = held
            self._of |= dict.fromkeys(held, file.name)
            self.shapes |= {name: tuple(tensor.shape) for name, tensor in held.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        if self._pickles:
            tensor: torch.Tensor = self._pickles[self._of[name]][name]
            return tensor
        try:
            return self._opened(name).get_tensor(name)  # type: ignore[no-any-return]  # the library has no types
        except SafetensorError as error:
            raise UserError(f"{self.folder / self._of[name]}: {name} cannot be read: {error}: fetch the file again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


class Renamed(Mapping[str, torch.Tensor]):
    """The tensors of a folder by our names, made of theirs when they are asked for.

    Args:
        shards: the folder's.
        names: the table of its family.
        sizes: of the model.

    Raises:
        UserError: tensors that the table does not know, or that ought to be the same and are not.
    """

    def __init__(self, shards: ShapedTensors, names: Names, sizes: Architecture) -> None:
        self.folder, self._shards, self._sizes = shards.folder, shards, sizes
        self._made: dict[str, tuple[Form, tuple[str, ...], int]] = {}
        bare = not any(name.startswith(names.prefix) for name in shards)
        used = set()
        for ours, form in names.entries(sizes["rack.blocks"]):
            theirs = tuple(name.removeprefix(names.prefix) if bare else name for name in form.theirs)
            if sizes["head.tied"] and ours == ("head.weight",):
                continue
            if all(name in shards for name in theirs):
                used |= set(theirs)
                self._made |= {name: (form, theirs, i) for i, name in enumerate(ours)}
        self._check_repeated(names, used)
        unknown = sorted(name for name in shards if name not in used and not name.endswith(names.passing))
        if unknown:
            listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            raise UserError(f"{shards.folder}: the config explains no tensor of these names: {listed}")
        self.shapes = {name: self._shape(name) for name in self._made}

    def _check_repeated(self, names: Names, used: set[str]) -> None:
        """A tensor that a folder holds twice, as some tools write tied ones, must be the same."""
        for again, first in names.repeated.items():
            if again in self._shards and again not in used and first in self._shards:
                if not torch.equal(self._shards[again], self._shards[first]):
                    raise UserError(
                        f"{self._shards.folder}: {again} is not {first}, though the config ties them (tie_word_embeddings): set that false"
                    )
                used.add(again)

    def _shape(self, name: str) -> tuple[int, ...]:
        form, theirs, place = self._made[name]
        return self._shards.shapes[theirs[place]] if isinstance(form, Plain) else tuple(self._make(name, meta=True).shape)

    def _make(self, name: str, *, meta: bool) -> torch.Tensor:
        form, theirs, place = self._made[name]
        parts = [torch.empty(self._shards.shapes[each], device="meta") if meta else self._shards[each] for each in theirs]
        try:
            return form.load(parts, self._sizes)[place]
        except RuntimeError as error:
            shapes = ", ".join(f"{each} {list(self._shards.shapes[each])}" for each in theirs)
            raise UserError(f"{self._shards.folder}: {shapes}: these are not the shapes of the config's sizes: {error}") from None

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._make(name, meta=False)

    def copy_into(self, name: str, target: torch.Tensor) -> torch.dtype:
        """Write a tensor where it belongs; one that is several of theirs, one below the other, is never made by itself."""
        form, theirs, _ = self._made[name]
        if not isinstance(form, Stacked):
            tensor = self[name]
            target.copy_(tensor)
            return tensor.dtype
        dtypes, row = [], 0
        for each in theirs:
            part = self._shards[each]
            target[row : row + len(part)].copy_(part)
            dtypes.append(part.dtype)
            row += len(part)
        return reduce(torch.promote_types, dtypes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def their_tensors(tensors: Mapping[str, torch.Tensor], names: Names, sizes: Architecture) -> Iterator[tuple[str, torch.Tensor]]:
    """Our tensors by their names, one after the other.

    Raises:
        UserError: one of ours has no place in the table.
    """
    left = set(tensors)
    for ours, form in names.entries(sizes["rack.blocks"]):
        if all(name in tensors for name in ours):
            left -= set(ours)
            yield from zip(form.theirs, form.store([tensors[each] for each in ours], sizes), strict=True)
    if left:
        raise UserError(f"the folder's family has no place for {', '.join(sorted(left)[:5])}")


def write_shards(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, most_bytes: int) -> None:
    """Write tensors into one file, or into several of at most so many bytes with an index beside them.

    Args:
        tensors: name and tensor; no more than one file's are held at once.
        folder: there already.
        most_bytes: of a file; a larger tensor has a file of its own.
    """
    held: dict[str, torch.Tensor] = {}
    files: list[list[str]] = []
    size = total = 0

    def flush() -> None:
        save_file(held, folder / f"part-{len(files)}.safetensors", {"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in tensors:
        own = tensor.nelement() * tensor.element_size()
        if held and size + own > most_bytes:
            flush()
            size = 0
        held[name] = tensor.contiguous()
        size, total = size + own, total + own
    flush()
    if len(files) == 1:
        (folder / "part-0.safetensors").rename(folder / ONE)
        return
    index: dict[str, str] = {}
    for i, names in enumerate(files):
        file = f"model-{i + 1:05}-of-{len(files):05}.safetensors"
        (folder / f"part-{i}.safetensors").rename(folder / file)
        index |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2, sort_keys=True)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8")
