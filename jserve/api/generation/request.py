"""What an endpoint asks of the engine: prompts, checked, and how they are to be answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jserve.protocol import Pooling, SamplingParams
from jserve.text.output.pieces import OutputParser


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt as token ids, checked against the context's length. `text` is kept where it is echoed."""

    token_ids: list[int]
    text: str = ""
    second_text: int = 0
    """Place of the first token of a pair's second text, where the model wants to know; else 0."""


@dataclass(frozen=True, slots=True)
class ParserUse:
    """Where tool calls are looked for, in the words of the metric that counts it."""

    mode: str
    request_type: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What an endpoint asks of the engine. Choices are prompt-major: index = prompt * n + k.

    `new_parser` makes the parser of one choice, which takes reasoning and tool calls out of its text.
    `counts_reasoning`: usage tells how many tokens were reasoning. `parser_use` is None where no tools are.
    """

    public_id: str
    prompts: Sequence[PreparedPrompt]
    sampling: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    new_parser: Callable[[], OutputParser] | None = None
    stream_interval: int = 1
    """Tokens of a choice per event of a stream."""
    pooling: Pooling = ""
    """Not empty: each prompt's vector is wanted, and nothing is generated."""
    normalizes: bool = True
    """Whether such a vector is brought to length 1."""
    counts_reasoning: bool = False
    parser_use: ParserUse | None = None
