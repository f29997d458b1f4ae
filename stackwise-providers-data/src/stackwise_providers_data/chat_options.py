"""Which chat template turns conversations into text, as a config says it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from stackwise import DataError, UserError, option
from stackwise_providers_data.tokenizer_options import TokenizerChoice

if TYPE_CHECKING:
    from stackwise_providers_data.chat_templates import ChatTemplate

CHATML = "chatml"
TEMPLATE_DOC = (
    "how a conversation becomes text: the chat template beside the tokenizer's file when left out, `chatml`, or a jinja template as "
    "{file: path} or {text: …}"
)
_SETTINGS, _JINJA = "tokenizer_config.json", "chat_template.jinja"


@frozen(kw_only=True)
class TemplateOptions:
    """A chat template of one's own."""

    file: str | None = option(None, doc="path of a jinja template")
    text: str | None = option(None, doc="the template itself")
    bos_token: str | None = option(None, doc="what the template calls `bos_token`; that of the tokenizer's folder when left out")
    eos_token: str | None = option(None, doc="what the template calls `eos_token`; that of the tokenizer's folder when left out")

    def __attrs_post_init__(self) -> None:
        if (self.file is None) == (self.text is None):
            raise UserError("template: give either file: path/to/template.jinja or text: a template")

    def source(self) -> str:
        """The jinja.

        Raises:
            DataError: the file cannot be read.
        """
        return self.text if self.text is not None else _utf8(_read(Path(self.file or ""), "template.file"), f"template.file: {self.file!r}")


Template = str | TemplateOptions | None
"""`chatml`, one's own, or None for the tokenizer's."""


def check_template(template: Template, tokenizer: TokenizerChoice) -> None:
    """Check that a template given by name exists, and that the tokenizer that should contain one can contain it.

    Raises:
        UserError: there is no such template, or the tokenizer cannot contain one.
    """
    if isinstance(template, str) and template != CHATML:
        raise UserError(f"template: there is none named {template!r}: write chatml, {{file: path}} or {{text: …}}")
    if template is None and (isinstance(tokenizer, str) or tokenizer.training is not None):
        raise UserError("template: this tokenizer brings no chat template: write template: chatml, {file: path} or {text: …}")


def check_brings_template(tokenizer: TokenizerChoice) -> None:
    """Check that a new run that uses the template of its tokenizer gets it from a folder or another run: it is kept with the run.

    Raises:
        DataError: the tokenizer is a single file.
    """
    named = None if isinstance(tokenizer, str) or tokenizer.kept is not None else tokenizer.file
    if named is not None and Path(named).is_file():
        folder = str(Path(named).parent)
        raise DataError(
            f"template: {named!r} is a file alone, and a chat template beside it would not stay with the run: write "
            f"tokenizer: {{file: {folder}}} to take the folder with its template and special tokens, or write template: {{file: path}}"
        )


def open_template(template: Template, tokenizer: TokenizerChoice) -> ChatTemplate:
    """The template that options name.

    Raises:
        DataError: a file that cannot be read, or a tokenizer's folder without a template.
        UserError: it is not jinja.
    """
    from stackwise_providers_data import chat_templates  # jinja2, which the options do without

    label, files = _files(tokenizer)
    settings = _settings(label, files)
    tokens = {key: token for key in settings if key.endswith("_token") and (token := _content(settings[key])) is not None}
    if isinstance(template, str):
        if _JINJA in files or settings.get("chat_template"):
            _tell_another(label)
        return chat_templates.ChatTemplate(chat_templates.CHATML, "the template chatml", tokens)
    if template is not None:
        own = {"bos_token": template.bos_token, "eos_token": template.eos_token}
        given = {key: token for key, token in own.items() if token is not None}
        own_label = "the template of the config" if template.file is None else f"the template {template.file!r}"
        return chat_templates.ChatTemplate(template.source(), own_label, {**tokens, **given})
    return chat_templates.ChatTemplate(_of_files(label, files, settings), f"the chat template beside {label}", tokens)


@cache
def _tell_another(label: str) -> None:
    """Warn once that the tokenizer has a template of its own that is not used."""
    print(
        f"data: {label} brings a chat template, and `template: chatml` is used in its place: leave `template` out to use it",
        file=sys.stderr,
    )


def _files(tokenizer: TokenizerChoice) -> tuple[str, Mapping[str, bytes]]:
    """A tokenizer that was not learnt here: what messages call it, and its files; those beside a single file come from its folder."""
    file = None if isinstance(tokenizer, str) or tokenizer.training is not None else tokenizer.read()
    if file is None or isinstance(tokenizer, str):
        return "the tokenizer", {}
    beside: dict[str, bytes] = {}
    if tokenizer.file is not None and not (place := Path(tokenizer.file)).is_dir():
        paths = {name: place.parent / name for name in (_SETTINGS, _JINJA)}
        beside = {name: _read(path, "tokenizer.file") for name, path in paths.items() if path.is_file()}
    return file.label, {**beside, **file.files}


def _of_files(label: str, files: Mapping[str, bytes], settings: Mapping[str, Any]) -> str:
    if _JINJA in files:
        return _utf8(files[_JINJA], f"{_JINJA} beside {label}")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {str(each.get("name")): each.get("template") for each in template if isinstance(each, Mapping)}
        template = named.get("default")
    if not isinstance(template, str):
        raise DataError(
            f"template: there is no chat template beside {label} ({_JINJA}, or `chat_template` in {_SETTINGS}): write template: chatml, "
            "{file: path} or {text: …}"
        )
    return template


def _settings(label: str, files: Mapping[str, bytes]) -> Mapping[str, Any]:
    try:
        settings = json.loads(files.get(_SETTINGS, b"{}"))
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{_SETTINGS} beside {label} is not JSON: {fault}: save the folder again") from fault
    return settings if isinstance(settings, Mapping) else {}


def _content(token: Any) -> str | None:
    """The text of a special token, which a folder writes as such or as a map."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _utf8(content: bytes, label: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as fault:
        raise DataError(f"{label} is not UTF-8 at byte {fault.start}: save the file as UTF-8") from fault


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise DataError(f"{key}: {str(path)!r} cannot be read: {fault.strerror}: mend the path") from fault
