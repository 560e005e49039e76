"""All tool formats, by name and by what gives them away in a chat template."""

from __future__ import annotations

from jserve.text.tools.deepseek import CALL, DeepSeek
from jserve.text.tools.format import ToolFormat
from jserve.text.tools.gemma import function_gemma, gemma4
from jserve.text.tools.harmony import Harmony
from jserve.text.tools.hermes import Hermes
from jserve.text.tools.json_list import cohere_command, granite, hunyuan, phi4_mini
from jserve.text.tools.kimi import CALLS as KIMI_CALLS
from jserve.text.tools.kimi import Kimi
from jserve.text.tools.llama3 import Llama3
from jserve.text.tools.mistral import Mistral
from jserve.text.tools.pythonic import Pythonic
from jserve.text.tools.tagged_parameters import glm45, minimax_m2, qwen3_coder, seed_oss

GENERIC: ToolFormat = Hermes()
"""Spoken with models whose template knows no tools, after a description in the system message."""

FORMATS: tuple[ToolFormat, ...] = (
    GENERIC,
    qwen3_coder(),
    minimax_m2(),
    glm45(),
    seed_oss(),
    Llama3(),
    Pythonic(asks_json=False),
    Pythonic(asks_json=True),
    Mistral(is_array=True),
    Mistral(is_array=False),
    DeepSeek("deepseek_v3", has_type=True),
    DeepSeek("deepseek_v31", has_type=False),
    Kimi(),
    granite(),
    hunyuan(),
    phi4_mini(),
    cohere_command(),
    function_gemma(),
    gemma4(),
    Harmony(),
)
ALIASES = {
    "qwen": "hermes",
    "qwen25": "hermes",
    "qwen3": "hermes",
    "longcat": "hermes",
    "qwen3_xml": "qwen3_coder",
    "qwen3_5": "qwen3_coder",
    "mimo": "qwen3_coder",
    "glm47": "glm45",
    "ernie45": "hermes",
    "exaone4": "hermes",
    "hunyuan": "hunyuan_a13b",
    "cohere_command4": "cohere_command3",
    "llama3": "llama3_json",
    "llama4_pythonic": "pythonic",
    "gemma3": "pythonic",
    "gemma": "functiongemma",
    "deepseek_r1": "deepseek_v3",
    "gpt_oss": "openai",
    "gptoss": "openai",
    "harmony": "openai",
}

_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("openai", ("<|channel|>", "<|message|>")),
    ("gemma4", ("<|tool_call>",)),
    ("functiongemma", ("<start_function_call>",)),
    ("deepseek_v3", (CALL, "```json")),
    ("deepseek_v31", (CALL,)),
    ("kimi_k2", (KIMI_CALLS,)),
    ("seed_oss", ("<seed:tool_call>",)),
    ("hunyuan_a13b", ("<tool_calls>", "</tool_calls>")),
    ("mistral_args", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("minimax_m2", ("<minimax:tool_call>", "<invoke name=")),
    ("glm45", ("<arg_key>", "<arg_value>")),
    ("cohere_command3", ("<|START_ACTION|>", "tool_name")),
    ("phi4_mini_json", ("<|/tool_call|>",)),
    ("phi4_mini_json", ("functools[",)),
    ("granite", ("<|tool_call|>",)),
    ("hermes", ("<tool_call>", "arguments")),
    ("llama4_json", ("<|python_start|>", '{"name": function name, "parameters"')),
    ("pythonic", ("<|python_start|>",)),
    ("pythonic", ("func_name1(",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ('{"name": function name, "parameters"',)),
)
"""What all stands in templates of a format. The most particular come first."""


def format_named(name: str) -> ToolFormat | None:
    """The format with this name, or this name of vLLM's; None where there is none."""
    wanted = ALIASES.get(name, name)
    return next((known for known in FORMATS if known.name == wanted), None)


def recognise_tools(template: str) -> ToolFormat | None:
    """The format that a chat template speaks, None where it speaks none that is known."""
    return next((format_named(name) for name, signs in _SIGNS if all(sign in template for sign in signs)), None)
