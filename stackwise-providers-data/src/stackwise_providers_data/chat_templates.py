"""Conversations → text by a chat template, and which stretches of the text the assistant wrote.

A template is jinja as Hugging Face tokenizers carry it. It runs in jinja2's sandbox and sees `messages`, `tools`, `add_generation_prompt`,
the special tokens (`bos_token`, `eos_token`, …), `raise_exception`, `tojson` and `strftime_now`, which says one fixed day so that the same
conversation is the same text on every day.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from attrs import frozen
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stackwise import DataError, UserError

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None
Span = tuple[int, int]
"""Index of the first character, and of the one after the last."""

RESERVED = _BEGIN, _END = "\ufdd0", "\ufdd1"
"""Around what a template marks as generated: code points that no text may hold (Unicode, chapter 23.7)."""
_TODAY = datetime(2024, 7, 26)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Put marks around the body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = [nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in (_BEGIN, _END)]
        return nodes.Scope([marks[0], *body, marks[1]]).set_lineno(line)


class Refusal(TemplateError):
    """The message of a template's `raise_exception`."""


def _raise(message: str) -> None:
    raise Refusal(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


@frozen(eq=False)
class Rendered:
    """A conversation as text."""

    text: str
    spans: tuple[Span, ...]
    """What the assistant wrote, each turn with the token that ends it."""


class ChatTemplate:
    """A template that is ready to use.

    Args:
        source: the jinja.
        label: what messages call it.
        tokens: special tokens by the name that the template has for them (`eos_token`).

    Raises:
        UserError: it is not jinja.
    """

    def __init__(self, source: str, label: str, tokens: Mapping[str, str]) -> None:
        self.label, self._tokens = label, dict(tokens)
        self.digest = hashlib.sha256(json.dumps([source, sorted(self._tokens.items())]).encode()).hexdigest()
        """Digest of everything that the text of a conversation depends on."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation])
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise, "strftime_now": _TODAY.strftime}
        try:
            self._template = environment.from_string(source)
            tree = environment.parse(source)
        except TemplateError as fault:
            raise UserError(f"{label} is not a chat template: {fault}") from fault
        marks = (data.data for output in tree.find_all(nodes.Output) for data in output.nodes if isinstance(data, nodes.TemplateData))
        self.marks_generation = _BEGIN in marks
        """Whether the template marks what the assistant writes (`{% generation %}`)."""

    def render(self, messages: Sequence[Message], place: str, tools: Tools = None) -> Rendered:
        """A conversation and the assistant's part in it.

        Where the template has `{% generation %}` blocks, that is what they hold. Elsewhere the text up to each assistant turn, its
        generation prompt included, and the text up to the turn's end are rendered; each has to begin with the one before, and the turn
        is what the second has beyond the first, without the white space after its end.

        Args:
            messages: each with a `role` and its `content`.
            place: where they come from, for messages.
            tools: what the assistant may call.

        Raises:
            DataError: the template refuses the conversation, leaves a message or the tools out, or does not say exactly what the
                assistant wrote.
        """
        whole = self._text(messages, place, tools)
        rendered = _marked(whole) if self.marks_generation else Rendered(whole, self._turns(messages, whole, place, tools))
        if not rendered.spans:
            raise DataError(f"{place}: {self.label} shows nothing that the assistant wrote: mend its generation blocks")
        for number, message in enumerate(messages, 1):
            if not _shows(rendered.text, message):
                raise DataError(f"{place}: {self.label} leaves out message {number}, of {message['role']}: choose another template")
        for number, message in enumerate(messages):
            said = {key: value for key, value in message.items() if key != "tool_calls"} | {"content": message.get("content") or ""}
            if message.get("tool_calls") and self._text([*messages[:number], said, *messages[number + 1 :]], place, tools) == whole:
                raise DataError(f"{place}: {self.label} leaves out the tool calls of message {number + 1}: choose another template")
        if tools and self._text(messages, place, None) == whole:
            raise DataError(f"{place}: {self.label} leaves out the tools of the conversation: choose another template, or remove them")
        return rendered

    def _turns(self, messages: Sequence[Message], whole: str, place: str, tools: Tools) -> tuple[Span, ...]:
        spans, before = [], ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._text(messages[:i], place, tools, prompt=True)
            turn = whole if i == len(messages) - 1 else self._text(messages[: i + 1], place, tools)
            if not (prompt.startswith(before) and turn.startswith(prompt) and whole.startswith(turn)):
                raise DataError(
                    f"{place}: {self.label} writes the conversation up to message {i + 1} otherwise than within the whole, so what the "
                    "assistant wrote cannot be told: mark it in the template by {% generation %} … {% endgeneration %}"
                )
            spans.append((len(prompt), len(prompt) + _turn_length(turn[len(prompt) :], str(message.get("content") or ""))))
            before = turn
        return tuple(spans)

    def _text(self, messages: Sequence[Message], place: str, tools: Tools, *, prompt: bool = False) -> str:
        try:
            return self._template.render(messages=messages, tools=tools, add_generation_prompt=prompt, **self._tokens)
        except Refusal as fault:
            raise DataError(f"{place}: {self.label} refuses the conversation: {fault}: mend or remove it") from fault
        except Exception as fault:  # whatever the expressions of a template raise
            raise DataError(f"{place}: {self.label} cannot show the conversation: {type(fault).__name__}: {fault}") from fault


def _shows(text: str, message: Message) -> bool:
    """Whether a text contains a message, literally or as JSON; for the assistant only its last word, because reasoning may be left out."""
    content = str(message.get("content") or "").strip()
    if message["role"] == "assistant":
        text, content = text.casefold(), content.casefold().rpartition(" ")[2]
    return content in text or any(json.dumps(content, ensure_ascii=ascii_)[1:-1] in text for ascii_ in (False, True))


def _turn_length(turn: str, content: str) -> int:
    """Characters of a turn up to and including the token that ends it, or the white space after it where there is no such token."""
    ended = turn.rstrip()
    text = content.strip()
    return len(turn) if not ended or (text and ended.endswith(text)) else len(ended)


def _marked(text: str) -> Rendered:
    """A text without its marks, and the spans between them."""
    plain, spans, size = [], [], 0
    for i, piece in enumerate(text.replace(_END, _BEGIN).split(_BEGIN)):
        plain.append(piece)
        if i % 2 and piece:
            spans.append((size, size + len(piece)))
        size += len(piece)
    return Rendered("".join(plain), tuple(spans))


ROLES = ("system", "developer", "user", "assistant", "tool")

CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}
{{ message['content'] + '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""OpenAI's ChatML: every turn between `<|im_start|>role` and `<|im_end|>`."""
