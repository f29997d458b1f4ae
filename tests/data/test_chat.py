"""Conversations: the text of the template, the loss on what the assistant wrote alone, and what is refused with its line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stackwise import BuildContext, DataError, UserError
from stackwise_providers_data.chat_options import TemplateOptions
from stackwise_providers_data.chat_templates import CHATML, ChatTemplate
from stackwise_providers_data.record_files import build_records
from stackwise_providers_data.record_options import JsonlOptions
from stackwise_providers_data.tokenizer_options import TokenizerOptions

SYSTEM = {"role": "system", "content": "be brief"}
USER, ASSISTANT = {"role": "user", "content": "what is 1 + 1?"}, {"role": "assistant", "content": "2, é 👍"}
CONVERSATIONS = [
    [SYSTEM, USER, ASSISTANT],
    [USER, ASSISTANT, {"role": "user", "content": "and\n2 + 2?"}, {"role": "assistant", "content": " 4 \n"}],
    [USER, {"role": "assistant", "content": ""}],
    [ASSISTANT, USER, ASSISTANT],
    [USER, ASSISTANT, {"role": "assistant", "content": "more"}, {"role": "user", "content": "bye"}],
]
UNMARKED = CHATML.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STACKWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _loader(conversations: Sequence[Any], *, length: int = 256, beside: Mapping[str, Any] | None = None, **options: Any) -> Any:
    lines = [json.dumps({"messages": messages, **(beside or {})}) for messages in conversations]
    Path("chat.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    declared = {"paths": ("chat.jsonl",), "messages": "messages", "template": "chatml", "heldout": 0.0, "shuffle": False, **options}
    made = JsonlOptions(**declared)
    loader = build_records(made, BuildContext(seed=3, split="train", max_length=length))
    assert loader.get_batch_spec() == made.to_spec()
    return loader


def _by_the_rule(messages: Sequence[Mapping[str, str]], ids_of: Any) -> tuple[list[int], list[bool]]:
    """trl's rule piece by piece: of a ChatML conversation what the assistant says and its end-of-turn token count, nothing else."""
    ids: list[int] = []
    counted: list[bool] = []
    for message in messages:
        for text, counts in (
            (f"<|im_start|>{message['role']}\n", False),
            (f"{message['content']}<|im_end|>", message["role"] == "assistant"),
            ("\n", False),
        ):
            piece = ids_of(text)
            ids += piece
            counted += [counts] * len(piece)
    return ids, counted


def _rows(batch: Mapping[str, torch.Tensor]) -> list[tuple[list[int], list[bool]]]:
    rows = zip(batch["tokens"], batch["loss_mask"], batch["mask"], strict=True)
    return [(ids[mask].tolist(), counted[mask].tolist()) for ids, counted, mask in rows]


def _folder(template: str | None = None, **settings: Any) -> TokenizerOptions:
    """A folder as Hugging Face writes it: merges over bytes, the marks of ChatML as special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    marks = ["<|im_start|>", "<|im_end|>", "<s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=marks, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(["what is what and more of what is", "be brief be brief", "user assistant system"], trainer)
    Path("folder").mkdir()
    library.save("folder/tokenizer.json")
    said = {"eos_token": "<|im_end|>", "bos_token": {"content": "<s>"}, **({"chat_template": template} if template else {}), **settings}
    Path("folder/tokenizer_config.json").write_text(json.dumps(said), encoding="utf-8")
    return TokenizerOptions(file="folder/tokenizer.json")


# -- which tokens count ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["chatml", TemplateOptions(text=UNMARKED)], ids=["marked", "by prefixes"])
def test_the_assistants_turns_and_their_ends_count_and_nothing_else(template: Any) -> None:
    batch = _loader(CONVERSATIONS, template=template).take(len(CONVERSATIONS), 256)
    expected = [_by_the_rule(messages, lambda text: list(text.encode())) for messages in CONVERSATIONS]
    assert _rows(batch) == expected
    assert not batch["loss_mask"][~batch["mask"]].any()


@pytest.mark.parametrize("template", [CHATML, UNMARKED], ids=["marked", "by prefixes"])
def test_so_they_do_under_the_vocabulary_and_template_of_a_folder(template: str) -> None:
    tokenizer = _folder(template)
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer.from_file("folder/tokenizer.json")
    batch = _loader(CONVERSATIONS, template=None, tokenizer=tokenizer).take(len(CONVERSATIONS), 256)
    assert _rows(batch) == [_by_the_rule(m, lambda text: library.encode(text, add_special_tokens=False).ids) for m in CONVERSATIONS]


def test_a_folder_s_own_template_that_is_not_used_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = _folder(CHATML)
    for template in (None, "chatml", "chatml"):
        _loader(CONVERSATIONS, template=template, tokenizer=tokenizer).take(1, 64)
    told = [line for line in capsys.readouterr().err.splitlines() if "template" in line]
    assert len(told) == 1 and "leave `template` out" in told[0]


def test_transformers_gives_the_same_text_ids_and_mask() -> None:
    transformers = pytest.importorskip("transformers")
    conversations = [CONVERSATIONS[i] for i in (0, 2, 3, 4)]  # it loses a turn that begins with a space, which its offsets leave out
    _folder(CHATML)
    other = transformers.PreTrainedTokenizerFast(tokenizer_file="folder/tokenizer.json", eos_token="<|im_end|>", bos_token="<s>")
    batch = _loader(conversations, template=None, tokenizer=TokenizerOptions(file="folder/tokenizer.json")).take(4, 256)
    for messages, (ids, counted) in zip(conversations, _rows(batch), strict=True):
        theirs = other.apply_chat_template(
            messages, chat_template=CHATML, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        assert ids == list(theirs["input_ids"])
        assert [int(each) for each in counted] == list(theirs["assistant_masks"])


def test_rows_of_several_conversations_keep_them_apart() -> None:
    batch = _loader(CONVERSATIONS, rows="packed", length=32).take(8, 32)
    ids, counted = zip(*(_by_the_rule(messages, lambda text: list(text.encode())) for messages in CONVERSATIONS), strict=True)
    stream, flags = ([*chain.from_iterable(each)][: 8 * 32] for each in (ids, counted))
    assert batch["tokens"].flatten().tolist() == stream and batch["loss_mask"].flatten().tolist() == flags
    owners = np.repeat(np.arange(len(ids)), [len(each) for each in ids])[: 8 * 32].reshape(8, 32)
    assert batch["segments"].tolist() == (owners - owners[:, :1]).tolist()


def test_special_tokens_and_the_day_are_those_of_the_folder_and_of_no_clock() -> None:
    said = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}"
    template = ChatTemplate(said + "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}", "own", {"bos_token": "<s>"})
    rendered = template.render([{"role": "assistant", "content": 'say "é"'}], "x:1")
    assert rendered.text == '<s>26 Jul 2024"say \\"é\\""'
    assert [rendered.text[first:stop] for first, stop in rendered.spans] == ['"say \\"é\\""']


def test_a_template_without_an_end_of_turn_ends_its_turns_by_white_space() -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    rendered = ChatTemplate(source.replace("\n", "{{ '\\n' }}"), "own", {}).render([USER, ASSISTANT], "x:1")
    assert [rendered.text[first:stop] for first, stop in rendered.spans] == [ASSISTANT["content"] + "\n"]


@pytest.mark.parametrize("content", ["4 ", " "], ids=["a space at the end", "nothing but a space"])
def test_the_space_that_ends_a_turn_counts_though_the_tokenizer_trims_it(content: str) -> None:
    """By trimmed offsets such a token stands behind the turn, and a turn of one space has no token at all."""
    said = "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" + said + "{{ '<|im_end|>' }}{% endfor %}"
    tokenizer = _folder(source)
    batch = _loader([[USER, {"role": "assistant", "content": content}]], template=None, tokenizer=tokenizer).take(1, 256)
    library = pytest.importorskip("tokenizers").Tokenizer.from_file("folder/tokenizer.json")
    ((ids, counted),) = _rows(batch)
    assert library.decode([i for i, counts in zip(ids, counted, strict=True) if counts], skip_special_tokens=False) == content


# -- what is refused --------------------------------------------------------------------------------------------------

FORGETS = "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.content }}>{% endif %}{% endfor %}"
MUTE = "{% for m in messages %}<{{ m.content if m.role == 'user' }}>{% endfor %}{% if add_generation_prompt %}<{% endif %}"
SPLITS = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.content }}>{% endif %}{% endfor %}"
WRONG: dict[str, tuple[Any, Any, str]] = {
    "no messages": ([], "chatml", "chat.jsonl:1: 'messages' holds no messages"),
    "text": ("hi", "chatml", "chat.jsonl:1: 'messages' holds no messages"),
    "unknown role": (
        [USER, {**ASSISTANT, "role": "asistant"}],
        "chatml",
        "message 2: 'asistant' is not a role — did you mean 'assistant'?",
    ),
    "another form": ([{"from": "human", "value": "hi"}], "chatml", "message 1 has from, value"),
    "no answer": ([SYSTEM, USER], "chatml", "chat.jsonl:1: nobody answers"),
    "no text": ([USER, {"role": "assistant", "content": None}], "chatml", "message 2: 'content' holds None"),
    "pictures": ([{"role": "user", "content": [{"type": "image"}]}, ASSISTANT], "chatml", "message 1: 'content' holds"),
    "a turn of no weight": ([USER, {**ASSISTANT, "weight": 0}], "chatml", "message 2: 'weight' holds 0"),
    "a turn not to train on": ([USER, {**ASSISTANT, "train": False}], "chatml", "message 2: 'train' holds False"),
    "calls that are not shown": (
        [USER, {**ASSISTANT, "tool_calls": [{"function": {"name": "f"}}]}],
        "chatml",
        "the tool calls of message 2",
    ),
    "half a character": ([{"role": "user", "content": "\ud800"}, ASSISTANT], "chatml", "message 1: 'content' holds half a character"),
    "reserved": ([USER, {"role": "assistant", "content": "\ufdd0"}], "chatml", "message 2: 'content' holds a code point"),
    "a template that forgets": (CONVERSATIONS[1], TemplateOptions(text=FORGETS), "chat.jsonl:1: the template of the config writes"),
    "an answer left out": ([USER, ASSISTANT], TemplateOptions(text=MUTE), "leaves out message 2, of assistant"),
    "a message left out": ([SYSTEM, USER, ASSISTANT], TemplateOptions(text=SPLITS), "leaves out message 1, of system"),
    "refused": ([USER, ASSISTANT], TemplateOptions(text="{{ raise_exception('no') }}"), "chat.jsonl:1: the template of the config refuses"),
    "outside": ([USER, ASSISTANT], TemplateOptions(text="{{ ''.__class__.__mro__ }}"), "SecurityError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_conversation_is_refused_with_its_line(name: str) -> None:
    messages, template, said = WRONG[name]
    with pytest.raises(DataError) as caught:
        _loader([messages], template=template)
    assert said in str(caught.value) and "chat.jsonl:1" in str(caught.value)


def test_templates_that_are_none_are_refused() -> None:
    for template, tokenizer in (("chatlm", "bytes"), (None, "bytes")):
        with pytest.raises(UserError, match="template"):
            JsonlOptions(paths=("x",), messages="messages", template=template, tokenizer=tokenizer)
    with pytest.raises(UserError, match="template"):
        JsonlOptions(paths=("x",), text="text", template="chatml")
    with pytest.raises(UserError, match="not a chat template"):
        _loader([[USER, ASSISTANT]], template=TemplateOptions(text="{% for %}"))
    with pytest.raises(DataError, match="there is no chat template"):
        _loader([[USER, ASSISTANT]], template=None, tokenizer=_folder())


def test_tools_are_shown_to_the_template_or_refused() -> None:
    """A record's `tools` reach the template as transformers hands them over; one that does not show them is refused."""
    shown = "{{ tools | tojson if tools is not none else 'none' }}" + UNMARKED
    for record, text in (({"tools": [{"name": "f"}]}, '[{"name": "f"}]'), ({"tools": []}, "none"), ({}, "none")):
        batch = _loader([[USER, ASSISTANT]], template=TemplateOptions(text=shown), beside=record).take(1, 256)
        assert bytes(batch["tokens"][0].tolist()).startswith(text.encode() + b"<|im_start|>user")
    for tools, said in (([{"name": "f"}], "leaves out the tools"), ("f", "'tools' holds 'f'")):
        with pytest.raises(DataError, match=f"chat.jsonl:1: .*{said}"):
            _loader([[USER, ASSISTANT]], beside={"tools": tools})


@pytest.mark.parametrize(("length", "missing"), [(256, 0), (104, 1), (64, 3)])
def test_answers_that_are_cut_away_are_counted(length: int, missing: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the answer begins in bytes: at byte 64, 64 and 104."""
    long = {"role": "user", "content": "x" * 54}
    loader = _loader([[USER, ASSISTANT], [USER, ASSISTANT], [long, ASSISTANT]], length=length)
    for _ in range(2):
        batch = loader.take(3, length)
    assert int((~batch["loss_mask"].any(dim=1)).sum()) == missing
    told = capsys.readouterr().err.splitlines()
    assert len(told) == (missing > 0) and all(f"{missing} of 3 documents" in line for line in told)


def test_a_template_that_is_not_utf_8_is_refused() -> None:
    Path("own.jinja").write_bytes(CHATML.encode() + b"\xe9")
    with pytest.raises(DataError, match=f"own.jinja' is not UTF-8 at byte {len(CHATML.encode())}"):
        _loader([[USER, ASSISTANT]], template=TemplateOptions(file="own.jinja"))


def test_a_template_beside_a_file_alone_is_refused_as_it_would_not_stay_with_the_run() -> None:
    alone = _folder(CHATML)
    options: dict[str, Any] = {"paths": ("chat.jsonl",), "messages": "messages"}
    with pytest.raises(DataError, match=r"tokenizer: \{file: folder\}"):
        JsonlOptions(tokenizer=alone, **options).make_tokenizer(None)
    for tokenizer, template in ((TokenizerOptions(file="folder"), None), (alone, "chatml")):
        made = JsonlOptions(tokenizer=tokenizer, template=template, **options).make_tokenizer(None)
        assert made is not None and ("tokenizer_config.json" in made.files) == (template is None)


def test_another_template_is_another_entry_of_the_cache() -> None:
    first = _loader(CONVERSATIONS)
    other = _loader(CONVERSATIONS, template=TemplateOptions(text=CHATML + "."))
    assert first.fingerprint()["sha256"] != other.fingerprint()["sha256"]
    assert _loader(CONVERSATIONS).fingerprint() == first.fingerprint()
