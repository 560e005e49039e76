"""What the model can do, in Ollama's words, told by its chat template.

"embedding" is not among them although /api/embed works: in Ollama it marks models that can do nothing else, and
clients leave such models out of their lists for chat. "insert" would need prompts for filling in the middle.
"""

import re

from jserve.api.served_model import ServedModel

_TOOLS = re.compile(r"\btools\b")
_THINKING = re.compile(r"enable_thinking|reasoning_effort|<think>|\bthinking\b|\[THINK\]")


def capabilities(model: ServedModel) -> list[str]:
    """Ollama's names, "completion" first."""
    found = ["completion"]
    if can_call_tools(model):
        found.append("tools")
    if can_think(model):
        found.append("thinking")
    return found


def can_call_tools(model: ServedModel) -> bool:
    """Whether the template shows tools to the model."""
    return bool(_TOOLS.search(_sources(model)))


def can_think(model: ServedModel) -> bool:
    """Whether the template knows of reasoning."""
    return bool(_THINKING.search(_sources(model)))


def _sources(model: ServedModel) -> str:
    return "\n".join(model.template.sources.values())
