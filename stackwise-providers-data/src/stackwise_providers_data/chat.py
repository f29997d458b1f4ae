"""Conversations → tokens, and which of them the assistant wrote; kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import frozen

from stackwise import DataError
from stackwise_providers_data.cache import obtain
from stackwise_providers_data.chat_templates import RESERVED, ROLES, ChatTemplate, Message, Rendered, Tools
from stackwise_providers_data.corpus import Corpus, open_tokenizer
from stackwise_providers_data.records import RecordDocuments
from stackwise_providers_data.splits import Part
from stackwise_providers_data.targets import LOSS_MASK
from stackwise_providers_data.tokenization import ByteTokenizer, LibraryTokenizer, TextTokenizer

TOOLS = "tools"
_FORMAT, _BATCH = 2, 256


@frozen(eq=False)
class Conversations(RecordDocuments):
    """The conversations of records, each a document."""

    template: ChatTemplate

    def identity(self) -> Any:
        """What is read, the share held out, and the template."""
        return [super().identity(), self.template.digest]

    def conversations(self, part: Part) -> Iterator[tuple[str, list[Message], Tools]]:
        """Place, messages and tools of every record of a part.

        Raises:
            DataError: no record, or one that holds no conversation.
        """
        (field,) = (getattr(self.options, key) for key in self.options.columns)
        for place, record in self.chosen(part):
            yield place, _messages(place, record, field), _tools(place, record)

    def read(self, part: Part) -> Iterator[tuple[str, bytes]]:
        """Place and text of every conversation of a part.

        Raises:
            DataError: no record, one that holds no conversation, or a template that does not show it.
        """
        for place, rendered in self.rendered(part):
            yield place, rendered.text.encode()

    def rendered(self, part: Part) -> Iterator[tuple[str, Rendered]]:
        """The same as text, with the assistant's part in it."""
        for place, messages, tools in self.conversations(part):
            yield place, self.template.render(messages, place, tools)

    def digest(self, part: Part) -> str:
        """Digest of the conversations of a part and of the template."""
        digest = hashlib.sha256(self.template.digest.encode())
        for _, messages, tools in self.conversations(part):
            line = json.dumps([messages, tools]).encode()
            digest.update(len(line).to_bytes(8, "little") + line)
        return digest.hexdigest()


def open_conversations(documents: Conversations, part: Part) -> Corpus:
    """The tokens of a part, a document a conversation, with `loss_mask` beside them: true on what the assistant wrote.

    A token counts if at least a part of it was written by the assistant.

    Raises:
        DataError: records that hold no conversation, or that cannot be tokenized.
        UserError: a library is missing, or the cache cannot be written.
    """
    tokenizer = open_tokenizer(documents, documents.options.tokenizer)
    name = f"chat-{_FORMAT}-{documents.digest(part)[:32]}-{tokenizer.key}"
    path, notes = obtain(name, lambda folder: _write(documents, tokenizer, part, folder))
    tokens = np.asarray(np.memmap(path / "tokens.bin", dtype=tokenizer.dtype, mode="r"))
    starts = np.asarray(np.memmap(path / "starts.bin", dtype=np.int64, mode="r"))
    mask = np.asarray(np.memmap(path / "loss.bin", dtype=np.bool_, mode="r"))
    learnt = {} if isinstance(tokenizer, ByteTokenizer) else {"tokenizer": tokenizer.key}
    fingerprint = {
        documents.noun: notes["documents"],
        "tokens": len(tokens),
        "assistant_tokens": notes["assistant"],
        "sha256": notes["sha256"],
        **learnt,
        "vocabulary": tokenizer.vocabulary,
    }
    return Corpus(documents.name, tokens, starts, 0, fingerprint, beside={LOSS_MASK: mask})


def _write(documents: Conversations, tokenizer: TextTokenizer, part: Part, folder: Path) -> Mapping[str, Any]:
    starts, size, assistant, written = [], 0, 0, hashlib.sha256()
    rendered = documents.rendered(part)
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "loss.bin").open("wb") as loss:
        while batch := list(islice(rendered, _BATCH)):
            for ids, mask in encode(tokenizer, batch):
                starts.append(size)
                size, assistant = size + len(ids), assistant + int(mask.sum())
                tokens.write(ids.tobytes())
                loss.write(mask.tobytes())
                written.update(ids.tobytes() + mask.tobytes())
    np.array(starts, dtype=np.int64).tofile(folder / "starts.bin")
    return {"documents": len(starts), "assistant": assistant, "sha256": written.hexdigest()}


def encode(
    tokenizer: TextTokenizer, conversations: Sequence[tuple[str, Rendered]]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]]:
    """The ids of each conversation, and which of them the assistant wrote.

    Raises:
        DataError: the tokenizer leaves out what the assistant wrote.
    """
    if not isinstance(tokenizer, LibraryTokenizer):
        for _, rendered in conversations:
            ids = np.frombuffer(rendered.text.encode(), dtype=np.uint8)
            places = np.arange(len(ids))
            spans = [(len(rendered.text[:first].encode()), len(rendered.text[:stop].encode())) for first, stop in rendered.spans]
            yield ids, _inside(places, places + 1, spans)
        return
    library = _untrimmed(tokenizer.library)
    encodings = library.encode_batch([rendered.text for _, rendered in conversations], add_special_tokens=False)
    for (place, rendered), encoding in zip(conversations, encodings, strict=True):
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        mask = _inside(offsets[:, 0], offsets[:, 1], rendered.spans)
        if not mask.any():
            raise DataError(f"{place}: the tokenizer leaves out what the assistant wrote: choose another")
        yield np.array(encoding.ids, dtype=tokenizer.dtype), mask


def _inside(starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], spans: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Which tokens lie in one of some spans: from the first that reaches into it to the last."""
    inside = np.zeros(len(starts), dtype=np.bool_)
    for first, stop in spans:
        touching = np.flatnonzero((stops > first) & (starts < stop))
        if len(touching):
            inside[touching[0] : touching[-1] + 1] = True
    return inside


def _untrimmed(library: Any) -> Any:
    """The same tokenizer, with offsets that include the white space at the edges of a token."""
    import tokenizers  # it is there: the tokenizer is one of its own

    copy = tokenizers.Tokenizer.from_str(library.to_str())
    copy.encode_special_tokens = library.encode_special_tokens
    copy.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    return copy


def _messages(place: str, record: Mapping[str, Any], field: str) -> list[Message]:
    """The conversation of a record.

    Raises:
        DataError: the record holds no conversation.
    """
    if field not in record:
        raise DataError(f"{place}: there is no field '{field}'; this one has {', '.join(map(str, record)) or 'none'}")
    messages = record[field]
    if not isinstance(messages, list) or not messages:
        raise DataError(f'{place}: \'{field}\' holds no messages: a conversation is [{{"role": "user", "content": "…"}}, …]')
    checked = [_message(f"{place}, message {number}", message) for number, message in enumerate(messages, 1)]
    if not any(message["role"] == "assistant" for message in checked):
        raise DataError(f"{place}: nobody answers in this conversation, so there is nothing to learn from it: remove it")
    return checked


def _tools(place: str, record: Mapping[str, Any]) -> Tools:
    """The tools that the assistant may call in a conversation; None where the record lists none.

    Raises:
        DataError: it is not a list of maps.
    """
    tools = record.get(TOOLS) or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise DataError(f"{place}: '{TOOLS}' holds {tools!r:.40}: a template reads a list of maps: write it as one, or remove the field")
    return tools


def _message(place: str, message: Any) -> Message:
    if not isinstance(message, Mapping) or "role" not in message:
        keys = f" has {', '.join(map(str, message)) or 'nothing'}" if isinstance(message, Mapping) else f" is {message!r:.40}"
        raise DataError(f'{place}{keys}: write {{"role": "user", "content": "…"}}')
    role, content = message["role"], message.get("content")
    if role not in ROLES:
        near = "".join(f" — did you mean {other!r}?" for other in get_close_matches(str(role), ROLES, n=1))
        raise DataError(f"{place}: {role!r:.40} is not a role{near}; roles are {', '.join(ROLES)}")
    for key in (key for key in ("weight", "train") if message.get(key) not in (None, 1)):
        raise DataError(
            f"{place}: {key!r} holds {message[key]!r:.40}, and every turn of the assistant's is learnt: leave it out, or mark "
            "what is learnt by generation blocks of a template of your own"
        )
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise DataError(f"{place}: 'content' holds {content!r:.40} where text is wanted: mend it, or remove the conversation")
    if content is None:
        return message
    if any(mark in content for mark in RESERVED):
        raise DataError(f"{place}: 'content' holds a code point that is not a character (U+FDD0 or U+FDD1): remove it")
    try:
        content.encode()
    except UnicodeEncodeError as fault:
        raise DataError(f"{place}: 'content' holds half a character at {fault.start} (a lone surrogate): mend or remove it") from fault
    return message
