"""The history written as text, for templates that know no tools."""

from jserve.text.tools.generic import plain_history
from jserve.text.tools.hermes import Hermes


def test_a_call_of_a_custom_tool_keeps_its_name_and_input() -> None:
    call = {"id": "1", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    (message,) = plain_history([{"role": "assistant", "tool_calls": [call]}], Hermes.form)
    assert '"shell"' in message["content"]
    assert '{"input": "ls"}' in message["content"]
