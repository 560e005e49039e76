"""Chat templates: the text of transformers, and a kind error where there is none."""

from pathlib import Path
from typing import Any

import pytest

from jserve.errors import ConfigError, RequestError
from jserve.text.templates.chat_template import ChatTemplate
from jserve.text.tokenizers.tokenizer import Tokenizer
from tests.text.tokenizers.tokenizer_maker import CHATML, train_byte_level

LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}"
    "{% generation %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)
TOOLS = """
{%- set ns = namespace(count=0) %}
{%- if tools %}
    {{- '<tools>' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
    {%- endfor %}
    {{- '</tools>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' and not message.content %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.reasoning_content is defined %}
        {{- '<think>' + message.reasoning_content + '</think>' }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- call.function.name ~ call.function.arguments | tojson }}
        {%- for key, value in call.function.arguments.items() %}{{- key ~ '=' ~ value }}{% endfor %}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if documents %}{{- documents | map(attribute='title') | join(',') }}{% endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined %}{{- enable_thinking }}{% endif %}
{%- endif %}
{{- ns.count }}{{- dict(a=1).a }}"""
LISTS = (
    "{% for message in messages %}{{ message.role }}:{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
)
EITHER = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}[{{ part.text }}]{% endfor %}{% endif %};{% endfor %}"
)
TRIMS = "{% for message in messages %}{{ message.content | trim }}|{% endfor %}"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": "  What is 1 < 2? 你好 "},
    {"role": "assistant", "content": "True & fine"},
    {"role": "user", "content": "Sure?"},
]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "in °C & <b>"}}
CALLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning": "use the tool",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"at": "Köln"}}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "12"},
]


def _chat(template: str, **named: str) -> ChatTemplate:
    return ChatTemplate({"default": template, **named}, SPECIAL)


def _reference(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template([messages], chat_template=template, **SPECIAL, **options)
    return rendered[0]


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize(
    ("template", "messages", "options"),
    [
        (CHATML, TALK, {}),
        (LLAMA2, TALK, {}),
        (TOOLS, CALLS, {"tools": [WEATHER]}),
        (TOOLS, TALK, {"documents": [{"title": "T", "text": "x"}, {"title": "U", "text": "y"}]}),
    ],
)
def test_the_text_is_that_of_transformers(
    template: str, messages: list[dict[str, Any]], options: dict[str, Any], prompt: bool
) -> None:
    expected = _reference(template, messages, add_generation_prompt=prompt, **options)
    assert _chat(template).render(messages, add_generation_prompt=prompt, **options) == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA2, TOOLS, TRIMS])
def test_an_open_last_message_is_that_of_transformers(template: str) -> None:
    messages = [TALK[0], {"role": "assistant", "content": "The answer is "}]
    expected = _reference(template, messages, continue_final_message=True)
    chat = _chat(template)
    actual = chat.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert actual == expected
    assert actual.endswith("The answer is" if template == TRIMS else "The answer is ")


def test_a_template_that_drops_the_last_message_cannot_continue_it() -> None:
    with pytest.raises(RequestError, match="cannot be continued"):
        _chat("fixed").render(TALK, add_generation_prompt=False, continue_final_message=True)


def test_further_variables_reach_the_template() -> None:
    text = _chat(TOOLS).render(TALK, chat_template_kwargs={"enable_thinking": False})
    assert "assistant\nFalse" in text
    assert "assistant\nFalse" not in _chat(TOOLS).render(TALK)


def test_further_variables_replace_neither_messages_nor_the_prompt() -> None:
    text = _chat(CHATML).render(TALK, chat_template_kwargs={"messages": [], "add_generation_prompt": False})
    assert text == _chat(CHATML).render(TALK)


def test_developer_is_a_system_message_unless_the_template_knows_it() -> None:
    messages = [{"role": "developer", "content": "x"}]
    assert "<|im_start|>system\nx" in _chat(CHATML).render(messages)
    assert "<|im_start|>developer\nx" in _chat(CHATML + "{# developer #}").render(messages)


def test_parts_are_joined_for_a_template_that_takes_strings() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    text = _chat(CHATML).render([{"role": "user", "content": parts}], add_generation_prompt=False)
    assert text == "<|im_start|>user\none\ntwo<|im_end|>\n"


def test_parts_and_strings_become_what_the_template_takes() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "plain"}]
    assert _chat(LISTS).render(messages) == "user:onetwo;assistant:plain;"
    assert _chat(EITHER).render(messages) == "[one][two];plain;"


def test_arguments_of_tool_calls_are_parsed_and_absent_fields_left_out() -> None:
    requested = {"name": "weather", "arguments": '{"at": "Köln"}'}
    messages = [
        {"role": "user", "content": "Weather?", "name": None, "tool_calls": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": requested}],
        },
        {"role": "assistant", "content": "bye", "tool_calls": []},
    ]
    text = _chat(TOOLS).render(messages)
    assert 'assistant\nweather{"at": "Köln"}at=Köln<|im_end|>' in text
    seen = _chat("{% for m in messages %}{{ m.keys() | list }}{% endfor %}").render(messages[::2])
    assert seen == "['role', 'content']['role', 'content']"
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == '{"at": "Köln"}'  # the caller's is untouched


def test_empty_arguments_are_no_arguments() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": ""}}
    text = _chat(TOOLS).render([TALK[0], {"role": "assistant", "tool_calls": [call]}])
    assert "now{}<|im_end|>" in text


@pytest.mark.parametrize(
    ("messages", "message", "param"),
    [
        ([], "messages is empty", "messages"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "takes text only",
            "messages[0].content[0]",
        ),
        ([{"role": "user", "content": 5}], "must be a string or a list", "messages[0].content"),
    ],
)
def test_a_message_that_cannot_be_text_is_named(messages: list[dict[str, Any]], message: str, param: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        _chat(TOOLS).render(messages)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"city": "Bon', '{"city": "Bon"}'),
        ('{"city": "Bonn", "da', '{"city": "Bonn"}'),
        ("{no", '{"arguments": "{no"}'),
        ("[1]", '{"arguments": [1]}'),
        ("null", "{}"),
        ('{"a": ' + "[" * 2000, None),
    ],
)
@pytest.mark.parametrize("template", [TOOLS, "{{ messages[1].tool_calls[0].function.arguments }}"])
def test_a_call_that_was_cut_off_is_rendered(template: str, arguments: str, shown: str | None) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    text = _chat(template).render([TALK[0], {"role": "assistant", "content": "", "tool_calls": [call]}, TALK[0]])
    if template == TOOLS and shown is not None:
        assert f"f{shown}" in text


def test_a_call_of_a_custom_tool_is_that_of_a_function() -> None:
    call = {"id": "1", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    assert 'patch{"input": "*** Begin"}' in _chat(TOOLS).render([TALK[0], {"role": "assistant", "tool_calls": [call]}])


def test_what_is_no_text_becomes_a_note_in_a_result_and_is_left_out_of_an_answer() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    messages = [
        TALK[0],
        {"role": "assistant", "content": [{"type": "thinking", "thinking": []}, {"type": "output_text", "text": "A"}]},
        {"role": "tool", "content": [image, {"type": "text", "text": "B"}]},
    ]
    text = _chat(CHATML).render(messages)
    assert "assistant\nA<|im_end|>" in text
    assert "tool\n[image_url left out: this model takes text only]\nB<|im_end|>" in text


def test_no_template_names_the_flag() -> None:
    with pytest.raises(RequestError, match="--chat-template"):
        ChatTemplate({}, SPECIAL).render(TALK)


def test_what_a_template_raises_is_quoted() -> None:
    with pytest.raises(RequestError, match="refuses these messages: roles must alternate"):
        _chat(LLAMA2).render([TALK[1]])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ undefined_thing.x }}", "UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ namespace(__init__=1) }}", "SecurityError"),
        ("{{ dict.__call__.__globals__ }}", "SecurityError"),
        ("{% for i in range(10000000) %}{% endfor %}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for %}", "does not compile .line 1"),
    ],
)
def test_a_template_that_fails_or_reaches_out_fails_the_request_alone(template: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        _chat(template).render(TALK)


def test_both_ways_to_end_the_text_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="exclude each other"):
        _chat(CHATML).render(TALK, add_generation_prompt=True, continue_final_message=True)


def test_a_request_with_tools_takes_the_template_for_tools() -> None:
    chat = _chat("plain", tool_use="with tools")
    assert chat.render(TALK) == "plain"
    assert chat.render(TALK, tools=[WEATHER]) == "with tools"


def test_the_flag_gives_a_file_or_a_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        train_byte_level("gpt-2"), source=tmp_path, special_tokens=SPECIAL, chat_templates={"default": "own"}
    )
    file = tmp_path / "t.jinja"
    file.write_text("from a file {{ bos_token }}")
    assert ChatTemplate.load(tokenizer).render(TALK) == "own"
    assert ChatTemplate.load(tokenizer, str(file)).render(TALK) == "from a file <s>"
    assert ChatTemplate.load(tokenizer, "{{ messages[2].content }}").render(TALK) == "Sure?"
    with pytest.raises(ConfigError, match="neither a file nor a template"):
        ChatTemplate.load(tokenizer, str(tmp_path / "missing.jinja"))
    with pytest.raises(ConfigError, match="does not compile: line 1"):
        ChatTemplate.load(tokenizer, "{% if %}")


def test_the_real_model_renders_its_own_template(real_gguf: Path) -> None:
    from jserve.text.load import load_tokenizer

    tokenizer = load_tokenizer(real_gguf)
    text = ChatTemplate.load(tokenizer).render([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode(text, False)[:2] == [1, 9690]


CALLED: list[Any] = [
    {"role": "user", "content": "x"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "é", "b": [1]}'}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "done"},
]
IN_WORDS = (
    "{% for m in messages %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}|{{ FORM }}|{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("form", ["'=' + c.function.arguments", "'=' ~ c.function.arguments|tojson"])
def test_arguments_have_the_form_that_the_template_can_write(form: str) -> None:
    """DeepSeek's templates put them after other text with `+`, which takes a string; others take the object."""
    template = ChatTemplate({"default": IN_WORDS.replace("FORM", form)}, {})
    expected = 'x|={"a": "é", "b": [1]}|done'
    assert template.render(CALLED, add_generation_prompt=False) == expected
    parsed = [
        *CALLED[:1],
        {**CALLED[1], "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é", "b": [1]}}}]},
    ]
    assert template.render(parsed, add_generation_prompt=False) == expected.removesuffix("done")


@pytest.mark.parametrize("content", [None, ""])
def test_a_call_without_content_has_none_where_the_template_asks_for_it(content: str | None) -> None:
    """As those of DeepSeek V3 and R1 do, which drop calls beside a content, or write the turn twice."""
    source = IN_WORDS.replace("m.tool_calls or []", "(m.tool_calls if m.content is none else [])")
    template = ChatTemplate({"default": source.replace("FORM", "c.function.arguments|tojson")}, {})
    messages = [CALLED[0], {**CALLED[1], "content": content}]
    assert template.render(messages, add_generation_prompt=False) == 'x|{"a": "é", "b": [1]}|'
    plain = ChatTemplate({"default": "{% for m in messages %}<{{ m.content }}>{{ m.tool_calls }}{% endfor %}"}, {})
    assert plain.render(messages, add_generation_prompt=False).startswith("<x><>")


def test_thought_beside_content_and_a_call_is_under_one_name_only() -> None:
    template = ChatTemplate({"default": "{{ 'thinking' in messages[1] }}{{ messages[1].reasoning_content }}"}, {})
    message = {**CALLED[1], "reasoning": "Hm."}
    assert template.render([CALLED[0], message], add_generation_prompt=False) == "TrueHm."
    assert template.render([CALLED[0], {**message, "content": "y"}], add_generation_prompt=False) == "FalseHm."
