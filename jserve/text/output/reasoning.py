"""Reasoning between two tags, as <think>...</think>: which tags a model has, and where it stands in them.

The opening tag may be the model's to write, or stand at the prompt's end, or the prompt may end with an empty
block, which says not to think. The rendered prompt tells.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from jserve.text.output.draft import Draft
from jserve.text.output.feed import Reading, TextFeed


class Thinking(enum.Enum):
    """Where a message begins."""

    MAYBE = "maybe"
    """Before the opening tag, if the model writes one."""
    OPEN = "open"
    """Inside: the prompt has opened it."""
    OVER = "over"
    """Behind: the prompt has closed it."""


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """`begin` and `end` are the tags. `is_always_open`: the model thinks even where the prompt has no tag."""

    name: str
    begin: str
    end: str
    is_always_open: bool = False

    @property
    def tags(self) -> tuple[str, str]:
        return self.begin, self.end

    @property
    def markers(self) -> tuple[str, ...]:
        """What of the tags may be a special token."""
        return tuple(tag.removesuffix("thought\n") for tag in self.tags)

    def at_end_of(self, prompt: str) -> Thinking:
        """Where a message begins that goes on from `prompt`."""
        prompt = prompt.rstrip()
        if prompt.endswith(self.begin.strip()):
            return Thinking.OPEN
        if prompt.endswith(self.end.strip()):
            return Thinking.OVER
        return Thinking.OPEN if self.is_always_open else Thinking.MAYBE

    def read(self, feed: TextFeed, draft: Draft, thinking: Thinking) -> Reading[None]:
        """Read the reasoning at the beginning of a message, if there is any."""
        if thinking is Thinking.OVER:
            return
        if thinking is Thinking.OPEN:
            draft.begin_reasoning()
        feed.record()
        yield from feed.skip_space()
        begun = yield from feed.try_any((self.begin,))
        before = feed.recorded()
        if thinking is Thinking.MAYBE and not begun:
            draft.content(before)
            return
        draft.begin_reasoning()
        if (yield from feed.copy_until((self.end,), draft.reasoning)):
            draft.end_reasoning()


THINK = ReasoningFormat("qwen3", "<think>", "</think>")
FORMATS = (
    THINK,
    ReasoningFormat("deepseek_r1", "<think>", "</think>", is_always_open=True),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("reasoning", "<reasoning>", "</reasoning>"),
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ReasoningFormat("gemma4", "<|channel>thought\n", "<channel|>"),
    ReasoningFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
)
"""All formats by name. Of several with the same tags the first is the one that is recognised."""
ALIASES = dict.fromkeys(
    (
        "think", "qwen3_5", "glm45", "glm47", "kimi_k2", "deepseek_v3", "deepseek_v31", "minimax_m2", "nemotron_v3",
        "olmo3", "step3", "ernie45", "hy_v3", "holo2", "smollm3",
    ),
    "qwen3",
) | {"magistral": "mistral", "cohere_command": "cohere"}  # fmt: skip


def reasoning_named(name: str) -> ReasoningFormat | None:
    """The format with this name, or this name of vLLM's; None where there is none."""
    wanted = ALIASES.get(name, name)
    return next((known for known in FORMATS if known.name == wanted), None)


def recognise_reasoning(template: str) -> ReasoningFormat | None:
    """The format whose tags a chat template names, None where the model does not think."""
    for known in FORMATS:
        if known.end in template and not known.is_always_open:
            return known
    return None
