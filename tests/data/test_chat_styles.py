"""Chat templates in the styles that models are published with: what the assistant wrote, with the token that ends its turn."""

from __future__ import annotations

from typing import Any

import pytest

from stackwise import DataError
from stackwise_providers_data.chat_templates import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock", "arguments": {"zone": "UTC"}}}]}
SYSTEM, USER, FIRST = ({"role": r, "content": c} for r, c in (("system", "be brief"), ("user", "the time?"), ("assistant", "It is noon.")))
THANKS, LAST = {"role": "user", "content": "thanks"}, {"role": "assistant", "content": "Any time!"}
TOOL = {"role": "tool", "content": "12:00"}
TURNS, TOOLS = [SYSTEM, USER, FIRST, THANKS, LAST], [SYSTEM, USER, CALL, TOOL, FIRST]

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content or '' }}\
{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{{ '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """{{ bos_token }}{% for m in messages %}{% set role = 'ipython' if m.role == 'tool' else m.role %}\
{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' }}{% if m.role == 'assistant' %}{% generation %}{% if m.tool_calls %}\
{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content | trim }}{% endif %}{{ '<|eot_id|>' }}{% endgeneration %}\
{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}\
{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}\
{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate user/assistant') }}{% endif %}\
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}{% if m.role == 'assistant' %}{% generation %}\
{{ m.content | trim + '<end_of_turn>' }}{% endgeneration %}{% else %}\
{{ (first if loop.first else '') + m.content | trim + '<end_of_turn>' }}\
{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}\
{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}\
{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m.role == 'user' %}\
{{ '[INST] ' + (first if loop.first else '') + m.content + ' [/INST]' }}{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + \
' [/TOOL_RESULTS]' }}{% else %}{% generation %}{% if m.tool_calls %}{{ '[TOOL_CALLS] ' + (m.tool_calls[0].function | tojson) }}{% else %}\
{{ ' ' + m.content | trim }}{% endif %}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""
ZEPHYR = """{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|assistant|>\n' }}{% generation %}{{ m.content + eos_token }}\
{% endgeneration %}{{ '\n' }}{% else %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""
FUNCTION = '{"name": "clock", "arguments": {"zone": "UTC"}}'
STYLES: dict[str, tuple[str, list[str], list[str] | str]] = {
    "chatml": (
        CHATML,
        ["It is noon.<|im_end|>", "Any time!<|im_end|>"],
        [f"<tool_call>{FUNCTION}</tool_call><|im_end|>", "It is noon.<|im_end|>"],
    ),
    "llama-3": (LLAMA3, ["It is noon.<|eot_id|>", "Any time!<|eot_id|>"], [f"{FUNCTION}<|eot_id|>", "It is noon.<|eot_id|>"]),
    "gemma": (GEMMA, ["It is noon.<end_of_turn>", "Any time!<end_of_turn>"], "roles must alternate"),
    "mistral": (MISTRAL, [" It is noon.</s>", " Any time!</s>"], [f"[TOOL_CALLS] {FUNCTION}</s>", " It is noon.</s>"]),
    "zephyr": (ZEPHYR, ["It is noon.</s>", "Any time!</s>"], "cannot show the conversation"),
}
"""Template, what counts of two turns, and of a call and the answer behind it, or why such a conversation is refused."""


def template(style: str, *, marked: bool) -> ChatTemplate:
    source = STYLES[style][0]
    if not marked:
        source = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    return ChatTemplate(source, "the template", TOKENS)


def spoken(made: ChatTemplate, messages: list[dict[str, Any]]) -> list[str]:
    rendered = made.render(messages, "x:1")
    return [rendered.text[first:stop] for first, stop in rendered.spans]


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "by prefixes"])
@pytest.mark.parametrize("style", STYLES)
def test_the_assistant_s_turns_and_their_ends_count(style: str, marked: bool) -> None:
    made, (_, turns, tools) = template(style, marked=marked), STYLES[style]
    assert spoken(made, TURNS) == turns
    assert spoken(made, TURNS[1:]) == turns  # without a system prompt
    assert spoken(made, TURNS[:3]) == turns[:1]
    assert spoken(made, TURNS[:4]) == turns[:1]  # the user has the last word
    if isinstance(tools, list):
        assert spoken(made, TOOLS) == tools
        return
    with pytest.raises(DataError, match=tools):
        made.render(TOOLS, "x:1")


def test_a_template_that_rewrites_what_was_said_before_is_refused_unless_it_marks_its_turns() -> None:
    """Reasoning is left out of earlier turns, as of Qwen3's: the text up to a turn is no part of the whole."""
    shown = "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    source = f"{{% for m in messages %}}<{{{{ m.role }}}}>{{% generation %}}{shown}|{{% endgeneration %}}{{% endfor %}}"
    source += "{% if add_generation_prompt %}<assistant>{% endif %}"
    messages = [USER, {**FIRST, "content": "<think>hm</think>It is noon."}, THANKS, LAST]
    plain = source.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    with pytest.raises(DataError, match="cannot be told"):
        ChatTemplate(plain, "the template", {}).render(messages, "x:1")
    marked = source.replace("{% generation %}", "{% if m.role == 'assistant' %}{% generation %}", 1)
    marked = marked.replace("{% endgeneration %}", "{% endgeneration %}{% else %}" + shown + "|{% endif %}", 1)
    assert spoken(ChatTemplate(marked, "the template", {}), messages) == ["It is noon.|", "Any time!|"]
