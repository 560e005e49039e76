"""`jserve chat` and `complete` against a live server: what a person sees, types and is told."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jserve.cli import main
from jserve.commands.client.connection import Connection, ServerError
from jserve.commands.client.conversation import Conversation, converse
from tests.api.live_server import LiveServer, StartServer


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    main(argv)
    return capsys.readouterr().out


def expected_chat(server: LiveServer, text: str) -> str:
    content = server.chat(text, max_tokens=12)["choices"][0]["message"]["content"]
    assert content
    return f"{content}\n"


def test_one_message_is_answered_as_the_api_answers_it(server: LiveServer, capsys) -> None:
    for url in (server.url, f"{server.url}/v1/", server.url.removeprefix("http://")):
        out = run(capsys, "chat", "--url", url, "-q", "hello", "--max-tokens", "12")
        assert out == expected_chat(server, "hello")


def test_a_text_is_continued(server: LiveServer, capsys) -> None:
    out = run(capsys, "complete", "--url", server.url, "-q", "hello", "--max-tokens", "12")
    assert out == server.complete("hello", max_tokens=12)["choices"][0]["text"] + "\n"


@pytest.fixture
def typed(server: LiveServer, monkeypatch, capsys) -> Callable[..., tuple[Conversation, str, str]]:
    """Type lines into a conversation; gives it with what was written to both outputs."""

    def type_lines(*lines: str) -> tuple[Conversation, str, str]:
        rest = iter(lines)

        def read(_: str = "") -> str:
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        conversation = Conversation(Connection(server.url), "tiny", fields={"max_tokens": 12})
        converse(conversation)
        return (conversation, *capsys.readouterr())

    return type_lines


def test_an_answer_becomes_part_of_the_conversation(typed) -> None:
    conversation, _, _ = typed("hello", "and now?")
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["user", "assistant", "user", "assistant"]
    conversation, _, _ = typed("hello", "/clear", "/bye", "never sent")
    assert conversation.messages == []


def test_several_lines_between_quotes_are_one_message(typed) -> None:
    conversation, _, _ = typed('"""one', "two", 'three"""')
    assert conversation.messages[0]["content"] == "one\ntwo\nthree"


def test_words_after_a_slash_change_the_requests(typed) -> None:
    conversation, _, said = typed(
        "/set system Be brief.", "/set parameter temperature 0.5", "/set parameter seed x", "/set parameter warmth 1",
        '/set format {"type": "object"}', "/show", "/dance", "/?",
    )  # fmt: skip
    assert conversation.system == "Be brief."
    assert conversation.fields["temperature"] == 0.5
    assert conversation.fields["response_format"]["json_schema"]["schema"] == {"type": "object"}
    for line in (
        "seed must be a whole number, not x", "there is no parameter warmth", "Be brief.",
        "/dance is not a command", "/set parameter NAME N",
    ):  # fmt: skip
        assert line in said
    assert conversation.command("/set format") == "Answers may have any form."
    assert "response_format" not in conversation.fields


def test_a_refused_message_is_told_and_the_next_is_answered(typed) -> None:
    conversation, _, said = typed("/set parameter temperature -1", "hello", "/set parameter temperature 0", "hello")
    assert "temperature" in said.split("jserve: ")[1]
    assert len(conversation.messages) == 2


def test_what_keeps_a_server_from_answering_is_a_sentence(make_server: StartServer, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["chat", "--url", "http://127.0.0.1:9", "-q", "hello"])
    assert left.value.code == 1
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err
    live = make_server(api_keys=("secret",))
    try:
        with pytest.raises(ServerError, match="wants a key: give --api-key, or set JSERVE_API_KEY"):
            Connection(live.url).models()
        out = run(capsys, "chat", "--url", live.url, "--api-key", "secret", "-q", "hi", "--max-tokens", "3")
        assert out.strip()
    finally:
        live.stop()


def test_a_model_that_is_not_served_is_told_with_those_that_are(server: LiveServer, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--url", server.url, "--model-name", "gpt-5", "-q", "hello"])
    assert "serves tiny, other, not gpt-5" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["cp", "create", "push", "signin"])
def test_words_of_other_programs_are_no_models(word: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        main([word, "x"])
    assert left.value.code == 1
    assert f"there is no command {word}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"), [("rnu", "did you mean run?"), ("llama3.2:1b", None), ("qwen", "ollama:qwen")]
)
def test_a_word_that_is_nothing_is_told_before_anything_starts(
    word: str, said: str | None, capsys, monkeypatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("jserve.commands.serve.run", started.append)
    if said is None:
        main([word])
        assert started
        return
    with pytest.raises(SystemExit):
        main([word])
    assert said in capsys.readouterr().err
    assert not started


def test_a_stream_that_breaks_off_is_told() -> None:
    from tests.commands.client.broken_server import broken_stream

    event = json.dumps({"choices": [{"delta": {"content": "half"}}]})
    with broken_stream(f"data: {event}\n\n") as url:
        connection = Connection(url)
        texts = []
        with pytest.raises(ServerError, match="broke off in the middle of the answer"):
            texts += [piece.text for piece in connection.chat("m", [])]
