"""Go templates of Ollama's library give the prompts that Ollama makes, and what is not translated is named."""

from typing import Any

import pytest

from jserve.text.templates.chat_template import ChatTemplate
from jserve.text.templates.go import GoTemplateError, looks_like_go, translate

CHATML = """{{ if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}{{ if .Prompt }}<|im_start|>user
{{ .Prompt }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ .Response }}<|im_end|>
"""
LLAMA32 = """<|start|>system

{{ if .System }}{{ .System }}
{{- end }}
{{- if .Tools }}You may call tools.
{{- end }}<|eot|>
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|start|>user
{{- if and $.Tools $last }}

Respond in the format {"name": function name}.

{{ range $.Tools }}
{{- . }}
{{ end }}
{{ .Content }}<|eot|>
{{- else }}

{{ .Content }}<|eot|>
{{- end }}{{ if $last }}<|start|>assistant

{{ end }}
{{- else if eq .Role "assistant" }}<|start|>assistant
{{- if .ToolCalls }}
{{ range .ToolCalls }}
{"name": "{{ .Function.Name }}", "parameters": {{ .Function.Arguments }}}{{ end }}
{{- else }}

{{ .Content }}
{{- end }}{{ if not $last }}<|eot|>{{ end }}
{{- else if eq .Role "tool" }}<|start|>ipython

{{ .Content }}<|eot|>{{ if $last }}<|start|>assistant

{{ end }}
{{- end }}
{{- end }}"""
TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
]


def render(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate({"default": translate(source)}, {}).render(messages, **options)


def test_template_of_one_turn_is_run_for_each_and_ends_at_the_response() -> None:
    assert render(CHATML, TALK) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    )


def test_answer_that_is_begun_is_gone_on_with() -> None:
    assert render(CHATML, TALK[1:3]) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb"


def test_template_that_does_not_say_where_the_response_goes_has_it_at_the_end() -> None:
    assert render("[INST] {{ .System }} {{ .Prompt }} [/INST]", TALK) == "[INST] S a [/INST]b[INST]  c [/INST]"


def test_template_that_walks_messages() -> None:
    assert render(LLAMA32, TALK) == (
        "<|start|>system\n\nS<|eot|><|start|>user\n\na<|eot|><|start|>assistant\n\nb<|eot|>"
        "<|start|>user\n\nc<|eot|><|start|>assistant\n\n"
    )


def test_tools_and_calls_are_compact_json() -> None:
    function = {"name": "f", "description": "a < b", "parameters": {"type": "object", "properties": {}}}
    tool = {"type": "function", "function": function}
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}
    talk = [{"role": "user", "content": "a"}, called, {"role": "tool", "content": "42"}]
    assert render(LLAMA32, talk, tools=[tool]) == (
        '<|start|>system\n\nYou may call tools.<|eot|><|start|>user\n\na<|eot|><|start|>assistant\n\n{"name": "f", '
        '"parameters": {"x":1}}<|eot|><|start|>ipython\n\n42<|eot|><|start|>assistant\n\n'
    )
    requested = render(LLAMA32, talk[:1], tools=[tool])
    assert '{"type":"function","function":{"name":"f","description":"a < b","parameters":' in requested


def test_messages_of_one_role_in_a_row_are_one() -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "user", "content": ""}]
    assert render("{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}", talk) == "<user>a\n\nb"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('{{ range .Messages }}{{ if or (eq .Role "x" "user") (eq .Role "y") }}1{{ end }}{{ end }}', "1"),
        ('{{ $x := "a" }}{{ range .Messages }}{{ $x = printf "%s%d" .Content 7 }}{{ end }}{{ $x }}', "hi7"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ end }}", "0hi"),
        ("{{ range .Messages }}{{ with .Content }}[{{ . }}]{{ else }}none{{ end }}{{ end }}", "[hi]"),
        ("{{ range .Tools }}x{{ else }}no tools{{ end }}{{ len .Messages }}", "no tools1"),
        ('a {{- /* a comment */ -}} b{{ index (slice .Messages 0) 0 | json | len | lt 5 }}', "abtrue"),
        ("{{ range .Messages }}{{ .Content }}{{ break }}{{ end }}{{ .Think }}", "hifalse"),
        ("{{ (index .Messages 0).Content }}{{ `{{ {% raw \\n` }}\u00e9\U0001f642", "hi{{ {% raw \\n\u00e9\U0001f642"),
        ("{{ range .Messages }}{% if x %}{{ .Items }}{{ end }}", "{% if x %}"),
    ],
)  # fmt: skip
def test_language(source: str, said: str) -> None:
    assert render(source, [{"role": "user", "content": "hi"}]) == said


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ .Messages | upper }}", "the function 'upper'"),
        ("{{ .Messages }}{{ .Weather }}", "variable .Weather is not supported; supported are System, "),
        ('{{ define "x" }}{{ end }}', "{{ define }} is not supported"),
        ("{{ if .Messages }}", "{{ if }} has no end"),
        ("{{ .Messages }}{{ end }}", "belongs to no block"),
        ("{{ .Messages", "is not closed"),
        ("{{ .Messages }}{{ $x }}", "variable $x is not declared"),
        ("just text", "neither .Messages nor .Prompt"),
        ("{{ if .Messages }}" * 500 + "{{ end }}" * 500, "nested more than"),
        ("{{ .Messages }}{{ " + "(" * 500 + ")" * 500 + " }}", "nested too deep"),
        ("{{ .Messages }}{{ . }}", "the whole of the template's variables"),
        ("{{ .Messages }}{{ 1 ~ 2 }}", "not understood"),
    ],
)
def test_what_has_no_translation_is_named(source: str, said: str) -> None:
    with pytest.raises(GoTemplateError) as error:
        translate(source)
    assert said in str(error.value)


def test_go_is_told_from_jinja() -> None:
    assert looks_like_go(CHATML)
    assert looks_like_go(LLAMA32)
    assert not looks_like_go("{% if a %}{{ a.b }}{{ messages[0]['content'] }}{{- bos_token }}{% endif %}")
