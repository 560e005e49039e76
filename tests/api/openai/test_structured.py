"""Forms of output, through the server: what is asked for in any spelling holds, and what cannot be is a 400."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import psutil
import pytest
from pydantic import BaseModel

from tests.api.live_server import LiveServer, StartServer
from tests.api.stream_pace import StreamPace

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "size": {"enum": ["s", "m"]}, "n": {"type": "integer"}},
    "required": ["name", "size", "n"],
    "additionalProperties": False,
}
TAGS = {
    "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
    "triggers": ["<f"],
}
JSON_FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
    {"structured_outputs": {"json": SCHEMA}},
    {"structured_outputs": {"json": json.dumps(SCHEMA)}},
    {"guided_json": SCHEMA, "guided_decoding_backend": "outlines"},
]
OTHER_FORMS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"regex": r"^\d{3}-[a-f]+$"}}, r"[0-9]{3}-[a-f]+"),
    ({"guided_regex": r"[xy]{2}/\w"}, r"[xy]{2}/\w"),
    ({"structured_outputs": {"choice": ["yes", "no", "näh"]}}, "yes|no|näh"),
    ({"guided_choice": ["a", "ab"]}, "a|ab"),
    ({"structured_outputs": {"grammar": 'start: "a" B\nB: /[0-9]{2}/'}}, "a[0-9]{2}"),
    ({"guided_grammar": 'root ::= item ("," item)?\nitem ::= "x" | "y"'}, "[xy](,[xy])?"),
    ({"guided_json": {"type": "integer"}, "guided_whitespace_pattern": " "}, r"-?\d+"),
    ({"structured_outputs": {"json": {"const": [1, 2]}, "disable_any_whitespace": True}}, r"\[1,2\]"),
]


@pytest.mark.parametrize("fields", JSON_FORMS)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_schema_holds_in_every_spelling(server: LiveServer, path: str, fields: dict[str, Any]) -> None:
    for seed in range(4):
        jsonschema.validate(json.loads(ask(server, path, seed=seed, **fields)), SCHEMA)


@pytest.mark.parametrize("fields", [{"response_format": {"type": "json_object"}}, {"guided_json_object": True}])
def test_json_object_gives_objects(server: LiveServer, fields: dict[str, Any]) -> None:
    assert all(isinstance(json.loads(ask(server, CHAT, seed=seed, **fields)), dict) for seed in range(5))


@pytest.mark.parametrize(("fields", "pattern"), OTHER_FORMS)
def test_other_forms_hold(server: LiveServer, fields: dict[str, Any], pattern: str) -> None:
    texts = [ask(server, COMPLETIONS, seed=seed, **fields) for seed in range(5)]
    assert all(re.fullmatch(pattern, text) for text in texts), texts


def test_streamed_and_whole_answers_are_the_same_and_every_choice_follows_the_form(server: LiveServer) -> None:
    fields = {"messages": [{"role": "user", "content": "hi"}], "n": 3, "seed": 5, "temperature": 1, **JSON_FORMS[0]}
    whole = server.http.post(CHAT, json=fields).json()["choices"]
    streamed = ["", "", ""]
    for event in server.events(CHAT, **fields):
        for choice in event["choices"]:
            streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == [choice["message"]["content"] for choice in whole]
    assert len(set(streamed)) > 1
    for text in streamed:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_openai_parses_into_a_pydantic_model(server: LiveServer) -> None:
    class Pet(BaseModel):
        kind: Literal["cat", "dog"]
        names: list[str]
        weight: float | None

    made = server.openai.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "hi"}], response_format=Pet, seed=3, temperature=1
    )
    assert isinstance(made.choices[0].message.parsed, Pet)
    assert made.choices[0].finish_reason == "stop"


def test_objects_are_closed_unless_the_schema_says_that_they_are_open(server: LiveServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}}
    closed = [ask(server, COMPLETIONS, seed=seed, structured_outputs={"json": schema}) for seed in range(8)]
    assert {json.dumps(json.loads(text)) for text in closed} == {"{}", '{"a": null}'}
    form = {"json": {**schema, "additionalProperties": {"type": "boolean"}}}
    opened = [json.loads(ask(server, COMPLETIONS, seed=seed, structured_outputs=form)) for seed in range(8)]
    assert any(set(value) - {"a"} for value in opened)


@pytest.mark.parametrize("tag", [TAGS, {"format": {"type": "tag", "begin": "<a>", "content": {"type": "any_text"}}}])
def test_structural_tags_are_taken_in_both_places(server: LiveServer, tag: dict[str, Any]) -> None:
    for fields in (
        {"response_format": {"type": "structural_tag", **tag}},
        {"structured_outputs": {"structural_tag": tag}},
    ):
        response = server.http.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 4, **fields})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/v1/responses"])
def test_a_schema_beside_json_object_is_held_to(server: LiveServer, path: str) -> None:
    """As llama.cpp's clients write it, with either type."""
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    for kind in ("json_object", "json_schema"):
        form = {"type": kind, "schema": schema}
        body: dict[str, Any] = {"seed": 4, "temperature": 1}
        if path == "/v1/responses":
            answer = server.http.post(path, json={**body, "input": "x", "text": {"format": form}}).json()
            text = answer["output"][0]["content"][0]["text"]
        elif path == COMPLETIONS:
            answer = server.http.post(
                path, json={**body, "prompt": "x", "max_tokens": 90, "response_format": form}
            ).json()
            text = answer["choices"][0]["text"]
        else:
            messages = [{"role": "user", "content": "x"}]
            answer = server.http.post(path, json={**body, "messages": messages, "response_format": form}).json()
            text = answer["choices"][0]["message"]["content"]
        assert json.loads(text)["a"] in ("x", "y")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (COMPLETIONS, {"response_format": {"type": "json_object", "grammar": "x"}}, "response_format.grammar"),
        (COMPLETIONS, {"response_format": {"type": "text", "schema": {}}}, "response_format.schema"),
        ("/v1/responses", {"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        (
            COMPLETIONS,
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
        ),
        (
            COMPLETIONS,
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "pattern": "x"}}},
            "response_format.json_schema.pattern",
        ),
        (COMPLETIONS, {"structured_outputs": {"json_object": True, "schema": {}}}, "structured_outputs.schema"),
        ("/v1/responses", {"text": {"format": {"type": "json_object", "regex": "x"}}}, "text.format.regex"),
        (
            "/v1/messages",
            {"output_config": {"format": {"type": "json_schema", "schema": {}, "regex": "x"}}},
            "output_config.format",
        ),
    ],
)
def test_a_form_that_is_not_read_is_refused_by_name(
    server: LiveServer, path: str, fields: dict[str, Any], param: str
) -> None:
    message = {"role": "user", "content": "x"}
    bodies = {COMPLETIONS: {"prompt": "x"}, "/v1/responses": {"input": "x"}}
    body = bodies.get(path, {"messages": [message], "max_tokens": 5})
    response = server.http.post(path, json={**body, **fields})
    assert response.status_code == 400, response.text
    assert param in str(response.json()["error"].get("param") or response.json()["error"]["message"])


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "json_schema"}}, "response_format", "'json_schema' field must be provided"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format", "needs `schema`"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one of"),
    (
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs",
        "multiple are specified: regex, cho",
    ),
    ({"guided_regex": "a", "guided_json": {}}, "guided_regex", "multiple are specified: guided_json, guided_regex"),
    ({"guided_regex": "a", **JSON_FORMS[0]}, "guided_regex", "response_format and guided_regex were given together"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "needs guided_json"),
    ({"guided_json": "{"}, "guided_json", "not JSON"),
    ({"guided_json": {"uniqueItems": True}}, "guided_json", "$: `uniqueItems` cannot be enforced"),
    ({"guided_json": {"properties": {"a": {"not": {}}}}}, "guided_json", "$.properties.a: `not` cannot be enforced"),
    ({"guided_json": {"$ref": "http://example.com/a"}}, "guided_json", "`$ref` must point into the schema itself"),
    ({"guided_json": {"$ref": "#/$defs/a"}}, "guided_json", "$.$defs.a, which the schema does not have"),
    ({"guided_json": {"$ref": "#"}}, "guided_json", "no finite value"),
    ({"guided_json": {"oneOf": [{"type": "integer"}, {"minimum": 1}]}}, "guided_json", "use `anyOf`"),
    ({"guided_json": {"type": "string", "pattern": "(?=a)b"}}, "guided_json", "look-around"),
    ({"guided_json": {"type": "string", "pattern": "("}}, "guided_json", "regex parse error"),
    ({"guided_json": {"type": "strin"}}, "guided_json", "`type` 'strin' is none of"),
    ({"guided_json": {"enum": []}}, "guided_json", "nsatisfiable"),
    ({"guided_json": False}, "guided_json", "no value satisfies"),
    ({"guided_json": {"type": []}}, "guided_json", "no finite value"),
    ({"guided_regex": "(a"}, "guided_regex", "regex parse error"),
    ({"guided_choice": []}, "guided_choice", "at least one"),
    ({"guided_grammar": ""}, "guided_grammar", "empty"),
    ({"guided_grammar": "start: start"}, "guided_grammar", "no text satisfies it"),
    ({"guided_grammar": 'start: start "a"'}, "guided_grammar", "no text satisfies it"),
    ({"guided_grammar": "hello"}, "guided_grammar", "neither a rule `start: ...`"),
    ({"guided_grammar": "root ::= missing"}, "guided_grammar", "missing"),
    ({"guided_grammar": "start: missing"}, "guided_grammar", "missing"),
    ({"guided_regex": ".*" * 3000}, "guided_regex", "more work per token than"),
    ({"guided_json": {"enum": ["x" * 99 + str(i) for i in range(50_000)]}}, "guided_json", "--max-grammar-bytes"),
    (
        {"response_format": {"type": "structural_tag", "format": {"type": "sql"}}},
        "response_format",
        "'sql' is not supp",
    ),
    ({"response_format": {"type": "xml"}}, "body.response_format.type", "json_schema"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD, ids=lambda value: str(value)[:60])
def test_what_cannot_be_enforced_is_refused_by_name(
    server: LiveServer, fields: dict[str, Any], param: str, message: str
) -> None:
    with _cheap_for_the_compiler():
        response = server.http.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 1, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 1000


def test_an_explosive_regex_is_answered_quickly_whatever_comes_of_it(server: LiveServer) -> None:
    for pattern in (
        "(a{1,5000}){1,5000}",
        "((a|b|ab){1,500}c?){1,500}",
        "(.|\\n)*a(.|\\n){200}b",
        "(" * 3000 + "a" + ")" * 3000,
    ):
        with _cheap_for_the_compiler():
            response = server.http.post(COMPLETIONS, json={"prompt": "x", "max_tokens": 20, "guided_regex": pattern})
        assert response.status_code in (200, 400), response.text
        assert "took more than" not in response.text
    assert ask(server, COMPLETIONS, guided_choice=["fine"]) == "fine"


def test_a_grammar_that_ends_the_compiler_is_a_400_and_the_next_one_compiles(server: LiveServer) -> None:
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)} | {"d3000": {"type": "integer"}}
    response = server.http.post(
        COMPLETIONS, json={"prompt": "x", "guided_json": {"$defs": chain, "$ref": "#/$defs/d0"}}
    )
    assert response.status_code == 400
    assert "overwhelmed the process" in response.json()["error"]["message"]
    assert ask(server, COMPLETIONS, guided_choice=["fine"]) == "fine"


def test_a_schema_deeper_than_64_levels_is_refused(server: LiveServer) -> None:
    for depth, status in ((60, 200), (70, 400), (5000, 400)):
        schema = '{"items":' * depth + "{}" + "}" * depth
        body = f'{{"prompt": "x", "max_tokens": 1, "guided_json": {schema}}}'
        response = server.http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
        assert response.status_code == status, response.text


def test_neighbours_stream_on_while_a_grammar_compiles_until_it_is_stopped(start_server: StartServer) -> None:
    server = start_server("--step-ms", "5", grammar_compile_timeout_s=1.0)
    ask(server, COMPLETIONS, guided_choice=["a"])  # The process is started.
    with StreamPace(server) as neighbour:
        before = neighbour.num_chunks
        answer = server.http.post(COMPLETIONS, json={"prompt": "x", "guided_grammar": slow_grammar()})
        num_meanwhile = neighbour.num_chunks - before
    assert answer.status_code == 400
    assert "took more than 1 s" in answer.json()["error"]["message"]
    assert num_meanwhile > 5
    assert neighbour.longest_s < 0.1
    assert ask(server, COMPLETIONS, guided_choice=["b"]) == "b"


@pytest.mark.parametrize(("opening", "reasons"), [("<think>\n", True), ("<think>\n\n</think>\n\n", False)])
def test_a_form_is_asked_of_the_answer_and_not_of_the_reasoning(
    start_server: StartServer, tmp_path: Path, opening: str, reasons: bool
) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(f"{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}{opening}{{# </think> #}}")
    server = start_server(chat_template=str(template))
    choice = server.chat("hi", guided_choice=["yes"], max_tokens=20, temperature=1, seed=1)["choices"][0]
    if reasons:  # Twenty random tokens are all thought, since none of them closes it.
        assert choice["finish_reason"] == "length"
        assert choice["message"]["reasoning"] not in (None, "", "yes")
        assert not choice["message"]["content"]
    else:
        assert choice["message"]["content"] == "yes"


def ask(server: LiveServer, path: str, **fields: Any) -> str:
    """The text of an answer that ended by itself."""
    fields = {"max_tokens": 200, "temperature": 1, "seed": 0, **fields}
    if path == CHAT:
        choice = server.chat("hi", **fields)["choices"][0]
        text: str = choice["message"]["content"]
    else:
        choice = server.complete("hi", **fields)["choices"][0]
        text = choice["text"]
    assert choice["finish_reason"] == "stop", text
    return text


@contextlib.contextmanager
def _cheap_for_the_compiler() -> Iterator[None]:
    """In here, no process that compiles grammars may take 6 s of CPU time."""
    before = _cpu_of_compilers()
    yield
    assert all(seconds - before.get(pid, 0.0) < 6 for pid, seconds in _cpu_of_compilers().items())


def _cpu_of_compilers() -> dict[int, float]:
    seconds = {}
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "jserve.text.grammars.grammar_worker" in process.cmdline():
                times = process.cpu_times()
                seconds[process.pid] = times.user + times.system
    return seconds


def slow_grammar() -> str:
    """GBNF whose conversion visits every rule once per rule: half a minute, and then its depth is too much."""
    return 'root ::= r0 "x"\n' + "".join(f"r{i} ::= r{i + 1}\n" for i in range(20_000)) + 'r20000 ::= "a"'
