"""Chat templates that know tools and reasoning, as short as can be, and what clients offer."""

from typing import Any

HERMES = """\
{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_REASONING = "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
THINKING = HERMES.replace("{{ message.content }}", _REASONING + "{{ message.content }}") + (
    "{% if add_generation_prompt %}{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif opens_thinking %}<think>\n{% endif %}{% endif %}"
)

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
TOOLS = [WEATHER, TIME]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'
CALL_TIME = '<tool_call>\n{"name": "get_time"}\n</tool_call>'


def saying(text: str) -> list[Any]:
    """Messages to which the fake engine, told so by `--quote-token 0`, answers with `text`."""
    return [{"role": "user", "content": f"<|endoftext|>{text}<|endoftext|>"}]
