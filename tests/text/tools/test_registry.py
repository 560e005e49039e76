"""Formats by name, and by what chat templates give away."""

import pytest

from jserve.text.output.reasoning import reasoning_named, recognise_reasoning
from jserve.text.tools.deepseek import CALL, CALLS, SEPARATOR
from jserve.text.tools.registry import FORMATS, format_named, recognise_tools

TEMPLATES = {
    "hermes": '{{- \'<tool_call>\\n{"name": "\' }}{{ call.name }}{{ \'", "arguments": \' }}',
    "qwen3_coder": "{{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n<parameter=' }}",
    "minimax_m2": "{{- '<minimax:tool_call>' }}<tool_call>{{- '<invoke name=\"' + tool_call.name + '\">' }}",
    "glm45": "<tool_call>{function-name}\\n<arg_key>{arg-key-1}</arg_key>\\n<arg_value>arguments</arg_value>",
    "seed_oss": "<seed:tool_call>\\n<function=example>\\n<parameter=a>value</parameter>",
    "kimi_k2": "{{- '<|tool_calls_section_begin|>' }}<|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>",
    "hunyuan_a13b": "{{- '<tool_calls>[' + calls + ']</tool_calls>' }}",
    "granite": "respond only with <|tool_call|> followed by a JSON list of tools used",
    "phi4_mini_json": 'respond in this format: <|tool_call|>{"name": "foo"}<|/tool_call|>',
    "cohere_command3": '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "{{ tc.function.name }}"',
    "llama4_json": '{{- \'<|python_start|>\' }}Respond in the format {"name": function name, "parameters": dictionary',
    "llama3_json": '{{- \'Respond in the format {"name": function name, "parameters": dictionary}\' }}<|python_tag|>',
    "pythonic": "Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]",
    "mistral": '{{- "[TOOL_CALLS] [" }}{{ out }}',
    "mistral_args": '{{- "[TOOL_CALLS]" + name + "[ARGS]" + arguments }}',
    "deepseek_v3": f"{{{{'{CALLS}{CALL}' + tool['type'] + '{SEPARATOR}' + name + '\\n' + '```json' }}}}",
    "deepseek_v31": f"{{{{'{CALLS}{CALL}' + name + '{SEPARATOR}' + arguments }}}}",
    "functiongemma": "{{- '<start_function_call>call:' + name }}",
    "gemma4": "{{- '<|tool_call>call:' + name }}",
    "openai": '{{- "<|start|>assistant<|channel|>final<|message|>" }}',
}


def test_every_format_is_recognised() -> None:
    assert {known.name for known in FORMATS} == TEMPLATES.keys()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_gives_its_format_away(name: str) -> None:
    actual = recognise_tools(TEMPLATES[name])
    assert actual is not None
    assert actual.name == name


@pytest.mark.parametrize("template", ["", "<|im_start|>{{ message.role }}", "<|call_section|>"])
def test_other_templates_give_nothing_away(template: str) -> None:
    assert recognise_tools(template) is None


@pytest.mark.parametrize(
    ("alias", "name"), [("qwen3_xml", "qwen3_coder"), ("llama4_pythonic", "pythonic"), ("gptoss", "openai")]
)
def test_names_of_vllm_are_understood(alias: str, name: str) -> None:
    actual = format_named(alias)
    assert actual is not None
    assert actual.name == name
    assert format_named("absent") is None


def test_reasoning_is_recognised_by_its_closing_tag() -> None:
    assert recognise_reasoning("{{ content.split('</think>')[-1] }}") is reasoning_named("qwen3")
    assert recognise_reasoning("[THINK]{{ x }}[/THINK]") is reasoning_named("mistral")
    assert recognise_reasoning("{{ content }}") is None
    assert reasoning_named("kimi_k2") is reasoning_named("qwen3")
    assert reasoning_named("absent") is None
