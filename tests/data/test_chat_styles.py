"""Chat templates in the styles that models are published with: what the assistant wrote, with the token that ends its turn."""

from __future__ import annotations

from typing import Any

import pytest
from chat_styles import FIRST, LAST, STYLES, THANKS, TOKENS, TOOLS, TURNS, USER

from stackwise import DataError
from stackwise_providers_data.chat_templates import ChatTemplate


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
