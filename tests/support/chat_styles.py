"""Chat templates in the styles that models are published with, conversations, and what of them the assistant wrote."""

from __future__ import annotations

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
