"""Updates of a choice become blocks that open, grow and close."""

from jserve.api.generation.blocks import BlockRow, Closed, Grown, Opened
from jserve.api.generation.choice import ChoiceUpdate
from jserve.protocol import TokenLogprobs
from jserve.text.output.pieces import ToolCallDelta


def update(text: str = "", *, reasoning: str = "", calls: list[ToolCallDelta] | None = None, end: str | None = None,
           logprob: float | None = None) -> ChoiceUpdate:  # fmt: skip
    logprobs = None if logprob is None else [TokenLogprobs(logprob, 1, [], [])]
    return ChoiceUpdate(0, text, [7], logprobs, end, None, reasoning, calls or [])


def described(row: BlockRow, *updates: ChoiceUpdate) -> list[str]:
    """The events as short texts."""
    shown = []
    for event in [event for each in updates for event in row.push(each)]:
        index = event.block.index
        match event:
            case Opened(block):
                shown.append(f"{index} opens {block.kind} {block.name}".strip())
            case Grown(_, text):
                shown.append(f"{index} + {text}")
            case Closed():
                shown.append(f"{index} closes")
    return shown


def test_blocks_follow_each_other() -> None:
    row = BlockRow()
    call = ToolCallDelta(0, "call_1", "f", "{")
    shown = described(
        row,
        update(reasoning="hm"),
        update(reasoning="!"),
        update("Yes"),
        update(calls=[call]),
        update(calls=[ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "call_2", "g")]),
        update(calls=[ToolCallDelta(1, arguments="{}")], end="tool_calls"),
    )
    assert shown == [
        "0 opens reasoning", "0 + hm", "0 + !", "0 closes",
        "1 opens text", "1 + Yes", "1 closes",
        "2 opens tool_call f", "2 + {", "2 + }", "2 closes",
        "3 opens tool_call g", "3 + {}", "3 closes",
    ]  # fmt: skip
    assert [(block.call_id, block.text) for block in row.blocks[2:]] == [("call_1", "{}"), ("call_2", "{}")]
    assert (row.finish_reason, row.has_tool_calls) == ("tool_calls", True)


def test_whitespace_opens_no_block_but_stays_with_its_text() -> None:
    row = BlockRow()
    shown = described(
        row,
        update(reasoning="hm"),
        update("\n"),
        update("\n"),
        update(" Yes\n"),
        update(calls=[ToolCallDelta(0, "a", "f", "{}")]),
        update("\n"),
        update(calls=[ToolCallDelta(1, "b", "g", "{}")]),
        update("\n", end="tool_calls"),
    )
    assert "1 + \n\n Yes\n" in shown
    assert [block.kind for block in row.blocks] == ["reasoning", "text", "tool_call", "tool_call"]


def test_an_empty_turn_has_one_empty_text() -> None:
    assert described(BlockRow(), update(end="stop")) == ["0 opens text", "0 closes"]
    assert described(BlockRow(), update("\n"), update(end="stop")) == ["0 opens text", "0 + \n", "0 closes"]


def test_calls_without_id_get_one() -> None:
    row = BlockRow()
    described(row, update(calls=[ToolCallDelta(0, None, "f", "{}")], end="tool_calls"))
    assert row.blocks[0].call_id.startswith("call_")


def test_logprobs_of_held_text_come_with_it_and_those_of_reasoning_do_not() -> None:
    row = BlockRow()
    updates = [update(reasoning="hm", logprob=-1.0), update("", logprob=-2.0), update("a", logprob=-3.0)]
    events = [event for one in [*updates, update("", logprob=-4.0, end="stop")] for event in row.push(one)]
    thought, text = [event for event in events if isinstance(event, Grown)]
    assert [entry.logprob for entry in text.logprobs] == [-2.0, -3.0]
    assert text.token_ids == [7, 7]
    assert thought.logprobs == thought.token_ids == []


def test_reasoning_can_be_left_out() -> None:
    row = BlockRow(with_reasoning=False)
    assert described(row, update(reasoning="hm"), update("a", end="stop")) == ["0 opens text", "0 + a", "0 closes"]
