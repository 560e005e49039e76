"""Tools and thinking through Ollama's client, with an engine that says what it is told to."""

from collections.abc import Iterator

import ollama
import pytest

from tests.api.live_server import LiveServer, StartServer
from tests.api.tool_templates import CALL, CALL_TIME, HERMES, THINKING, TOOLS, saying

WEATHER_CALL = ("get_weather", {"city": "Köln", "days": 2})
CALLS = [WEATHER_CALL, ("get_time", {})]


@pytest.fixture(scope="module")
def hermes(make_server: StartServer) -> Iterator[ollama.Client]:
    live = make_server("--quote-token", "0", chat_template=HERMES, max_model_len=4096)
    yield ollama.Client(live.url)
    live.stop()


@pytest.fixture(scope="module")
def thinking_server(make_server: StartServer) -> Iterator[LiveServer]:
    live = make_server("--quote-token", "0", chat_template=THINKING, max_model_len=4096)
    yield live
    live.stop()


@pytest.fixture(scope="module")
def thinker(thinking_server: LiveServer) -> ollama.Client:
    return ollama.Client(thinking_server.url)


def calls_of(message: ollama.Message) -> list[tuple[str, object]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or ()]


def test_show_tells_tools_and_thinking(hermes: ollama.Client, thinker: ollama.Client) -> None:
    assert hermes.show("tiny").capabilities == ["completion", "tools"]
    assert thinker.show("tiny").capabilities == ["completion", "tools", "thinking"]


def test_arguments_are_objects(hermes: ollama.Client) -> None:
    response = hermes.chat("tiny", saying(f"Hm.\n{CALL}\n{CALL_TIME}"), tools=TOOLS)
    assert calls_of(response.message) == CALLS
    assert response.message.content == "Hm."
    assert response.done_reason == "stop"


def test_a_streamed_call_comes_whole_and_once(hermes: ollama.Client) -> None:
    chunks = list(hermes.chat("tiny", saying(f"Hm.\n{CALL}\n{CALL_TIME}"), tools=TOOLS, stream=True))
    assert [call for chunk in chunks for call in calls_of(chunk.message)] == CALLS
    assert "".join(chunk.message.content or "" for chunk in chunks) == "Hm."
    assert chunks[-1].done
    assert not chunks[-1].message.tool_calls


def test_a_python_function_is_a_tool(hermes: ollama.Client) -> None:
    def get_weather(city: str, days: int = 1) -> str:
        """The weather.

        Args:
            city: Where.
            days: How many.
        """
        return f"{city} {days}"

    response = hermes.chat("tiny", saying(CALL), tools=[get_weather])
    assert calls_of(response.message) == [WEATHER_CALL]


def test_a_conversation_with_calls_and_answers_goes_into_the_template(hermes: ollama.Client) -> None:
    first = hermes.chat("tiny", saying(CALL), tools=TOOLS)
    history = [{"role": "user", "content": "?"}, first.message, {"role": "tool", "tool_name": "get_weather"}]
    alone = hermes.chat("tiny", [history[0], *saying("Rain.")])
    with_call = hermes.chat("tiny", [*history, *saying("Rain.")])
    assert with_call.message.content == alone.message.content == "Rain."
    assert (with_call.prompt_eval_count or 0) > (alone.prompt_eval_count or 0) + len('{"city": "Köln", "days": 2}')


def test_a_call_that_the_limit_cuts_is_left_out(hermes: ollama.Client) -> None:
    response = hermes.chat("tiny", saying(CALL), tools=TOOLS, options={"num_predict": 60})
    assert response.done_reason == "length"
    assert not response.message.tool_calls


def test_thinking_is_apart_unless_it_is_switched_off(thinker: ollama.Client) -> None:
    said = saying("<think>\nLet me see.\n</think>\n\nIt is 4.")
    for think in (None, True, "high"):
        message = thinker.chat("tiny", said, think=think).message
        assert message.content == "It is 4."
        assert message.thinking is not None
        assert message.thinking.strip() == "Let me see."
    message = thinker.chat("tiny", said, think=False).message
    assert message.thinking is None
    assert "It is 4." in (message.content or "")


def test_streamed_thinking_comes_before_the_content(thinker: ollama.Client) -> None:
    said = saying("<think>\nLet me see.\n</think>\n\nIt is 4.")
    chunks = [chunk.message for chunk in thinker.chat("tiny", said, think=True, stream=True)]
    whole = thinker.chat("tiny", said, think=True).message
    assert "".join(message.thinking or "" for message in chunks) == whole.thinking
    assert "".join(message.content or "" for message in chunks) == whole.content
    kinds = ["thinking" if message.thinking else "content" for message in chunks]
    assert kinds == sorted(kinds, reverse=True)


def test_generate_tells_thinking_too(thinker: ollama.Client) -> None:
    [said] = saying("<think>Let me see.</think>It is 4.")
    response = thinker.generate("tiny", said["content"], think=True)
    assert (response.thinking, response.response) == ("Let me see.", "It is 4.")
    raw = thinker.generate("tiny", said["content"], raw=True)
    assert raw.thinking is None
    assert raw.response == "<think>Let me see.</think>It is 4."


def test_think_reaches_the_template(thinker: ollama.Client) -> None:
    """The template closes the thinking at once where it is switched off."""
    counts = [thinker.chat("tiny", saying("4"), think=think).prompt_eval_count or 0 for think in (None, True, False)]
    assert counts[0] == counts[1]
    assert counts[2] == counts[1] + len("<think>\n\n</think>\n\n")
