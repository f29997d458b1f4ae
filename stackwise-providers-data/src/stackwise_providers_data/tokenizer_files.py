"""A `tokenizer.json` with the special tokens that its folder names, read without a tokenizer library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise import DataError, Tokenizer, UserError, read_tokenizers

JSON, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_BESIDE = (SETTINGS, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
_ROLES = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")


@frozen(eq=False, slots=False)
class TokenizerFile:
    """A tokenizer as files."""

    label: str
    """What messages call it."""
    files: Mapping[str, bytes]
    """`tokenizer.json`, and what stands beside it in a folder of Hugging Face."""

    @property
    def content(self) -> bytes:
        """The `tokenizer.json`."""
        return self.files[JSON]

    @property
    def vocabulary(self) -> str:
        """The digest that names the vocabulary."""
        return vocabulary_name(self.content)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token → id, those added to the base vocabulary included.

        Raises:
            DataError: it is not a `tokenizer.json`.
        """
        try:
            content: Any = json.loads(self.content)
            vocab = content["model"]["vocab"]
            if isinstance(vocab, list):  # a unigram model lists pairs of token and score in the order of their ids
                vocab = {token: i for i, (token, _) in enumerate(vocab)}
            ids = {**vocab, **{entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
            raise DataError(f"{self.label} is not a tokenizer.json: save one with the tokenizers library") from fault
        if not ids or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids.values()):
            raise DataError(f"the vocabulary of {self.label} is empty or holds ids that are not whole numbers: save it again")
        return ids

    @property
    def size(self) -> int:
        """Number of ids: one more than the largest."""
        return 1 + max(self.ids.values())

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What the files beside it say, `tokenizer_config.json` before the others.

        Raises:
            DataError: one of them is not a map.
        """
        merged: dict[str, Any] = {}
        for name in ("special_tokens_map.json", SETTINGS):
            try:
                merged |= dict(json.loads(self.files.get(name, b"{}")))
            except (ValueError, TypeError, RecursionError) as fault:
                raise DataError(f"{name} beside {self.label} is not a map of settings: save the folder again") from fault
        return merged

    def role(self, name: str) -> int | None:
        """The id of the token in a role (`bos`, `eos`, `pad`, …); None where no file names it.

        Raises:
            DataError: the file names a token that is not in the vocabulary.
        """
        named = self.settings.get(f"{name}_token")
        token = named.get("content") if isinstance(named, Mapping) else named
        if token is None:
            return None
        if not isinstance(token, str) or token not in self.ids:
            raise DataError(f"{self.label} has {token!r} for {name}, which is not a token of it: save the folder again")
        return self.ids[token]

    def id_of(self, token: str) -> int:
        """The id of a token, given by itself or by its role.

        Raises:
            DataError: the vocabulary has no such token, and no file names such a role.
        """
        id = self.ids.get(token)
        id = self.role(token) if id is None and token in _ROLES else id
        if id is None:
            roles = ", ".join(role for role in _ROLES if self.role(role) is not None) or "none"
            raise DataError(
                f"tokenizer.separator: {token!r} is not a token of {self.label} (roles that it names: {roles}): name one, or leave it out"
            )
        return id


def vocabulary_name(content: bytes) -> str:
    """The name of the vocabulary of a `tokenizer.json`: the digest of its bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def tokenizer_in(tokenizer: Tokenizer) -> TokenizerFile:
    """The tokenizer that the files of a run make.

    Raises:
        DataError: there is no `tokenizer.json` among them, or it is that of another vocabulary, whose ids the model does not know.
    """
    if JSON not in tokenizer.files:
        raise DataError(f"the tokenizer of the run has no {JSON} but {', '.join(sorted(tokenizer.files)) or 'nothing'}: put the file back")
    file = TokenizerFile("the tokenizer of the run", tokenizer.files)
    if file.vocabulary != tokenizer.vocabulary:
        what = f"is to be the vocabulary {tokenizer.vocabulary}, and its {JSON} is {file.vocabulary}"
        raise DataError(f"{file.label} {what}: put the file back")
    return file


def tokenizer_at(path: str) -> TokenizerFile:
    """The tokenizer of a file, or of a folder that holds `tokenizer.json`.

    Raises:
        DataError: it cannot be read.
    """
    place = Path(path)
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise DataError(f"tokenizer.file: {path!r} is neither a file nor a folder: give a {JSON}, or a folder that holds one")
    try:
        if not place.is_dir():
            return TokenizerFile(f"tokenizer.file: {path!r}", {JSON: place.read_bytes()})
        beside = {name: (place / name).read_bytes() for name in _BESIDE if (place / name).is_file()}
        return TokenizerFile(f"tokenizer.file: {path!r}", {JSON: (place / JSON).read_bytes(), **beside})
    except OSError as fault:
        raise DataError(f"tokenizer.file: {path!r} cannot be read: {fault.strerror}: give a {JSON}, or a folder that holds one") from fault


def tokenizer_of_run(run: str) -> TokenizerFile:
    """The tokenizer of a run directory, of final weights or of an export.

    Raises:
        DataError: it holds none, or several, or one that is not what it was.
    """
    try:
        entries = {entry.tokenizer.vocabulary: entry.tokenizer for entry in read_tokenizers(run).entries if JSON in entry.tokenizer.files}
    except UserError as fault:
        raise DataError(f"tokenizer.run: {fault}") from fault
    if len(entries) != 1:
        what = f"holds several vocabularies ({', '.join(entries)})" if entries else "holds no tokenizer"
        raise DataError(f"tokenizer.run: {run!r} {what}: give a run over text, or the path of a tokenizer under `file`")
    ((vocabulary, tokenizer),) = entries.items()
    file = TokenizerFile(f"tokenizer.run: {run!r}", tokenizer.files)
    if vocabulary == "bytes":
        raise DataError(f"tokenizer.run: {run!r} was trained on bytes: write tokenizer: bytes")
    if vocabulary != file.vocabulary:
        sentence = f"tokenizer.run: {run!r} was trained with the vocabulary {vocabulary}, and its {JSON} is {file.vocabulary}"
        raise DataError(f"{sentence}: put the file back")
    return file


def byte_tokenizer() -> Tokenizer:
    """The tokenizer of bytes for a run: a `tokenizer.json` that gives every byte of a text its own id."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "vocab": _byte_characters(), "merges": []}
    steps: dict[str, Any] = {"normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], **steps, "model": model}
    files = {JSON: content, SETTINGS: {"tokenizer_class": "PreTrainedTokenizerFast"}}
    return Tokenizer(vocabulary="bytes", files={name: (json.dumps(file, indent=1) + "\n").encode() for name, file in files.items()})


def _byte_characters() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies: itself where it can be printed, else one above 255 (GPT-2)."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printed]
    characters = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {characters[byte]: byte for byte in range(256)}
