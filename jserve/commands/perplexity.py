"""`jserve perplexity`: how well a model predicts a text, through the path that answers requests.

The text is cut into stretches, one beside the other; every token but the first of each is predicted from those of its
stretch before it. So figures compare for one tokenizer and one length, whatever the weights and the cache are in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jserve.commands.corpus import read_text
from jserve.commands.hub_model import with_local_files
from jserve.commands.options import parse
from jserve.commands.parser import Parser
from jserve.commands.sizes import parse_count
from jserve.config import EngineConfig
from jserve.errors import ConfigError
from jserve.log import set_up_logging
from jserve.protocol import SamplingParams

if TYPE_CHECKING:
    from jserve.llm import LLM


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`nats` is the sum of -ln p over `tokens` predicted tokens."""

    tokens: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def value(self) -> float:
        """e to the mean."""
        return math.exp(self.nats_per_token)

    def as_json(self) -> str:
        """One object."""
        fields = {"perplexity": self.value, "nats_per_token": self.nats_per_token, "tokens": self.tokens}
        return msgspec.json.encode(fields).decode()


def measure(config: EngineConfig, text: str, length: int) -> Perplexity:
    """Start a model and score the text. Raises StartupError where it cannot start, or the text is too short."""
    from jserve.llm import LLM  # brings jax, which `--help` need not wait for

    options = msgspec.structs.asdict(config)
    return score(LLM(options.pop("model"), **options), text, length)


def score(llm: "LLM", text: str, length: int) -> Perplexity:
    """Score a text with a model that runs.

    Raises ConfigError where the text has no two tokens, RequestError where a stretch of `length` tokens is more than
    the model takes.
    """
    tokens = llm.tokenizer.encode(text, add_special_tokens=True)
    stretches = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    stretches = [stretch for stretch in stretches if len(stretch) > 1]
    if not stretches:
        raise ConfigError(f"the text has {len(tokens)} tokens, of which none can be predicted; give a longer one")
    return score_tokens(llm, stretches)


def score_tokens(llm: "LLM", stretches: list[list[int]]) -> Perplexity:
    """The perplexity of all but the first token of each stretch."""
    outputs = llm.generate(stretches, SamplingParams(max_tokens=0, prompt_logprobs=0))
    scores = [entry.logprob for output in outputs for entry in output.prompt_logprobs or ()]
    assert len(scores) == sum(len(stretch) - 1 for stretch in stretches)
    return Perplexity(len(scores), -math.fsum(scores))


_PERPLEXITY_HELP = """usage: jserve perplexity MODEL FILE [--sequence-length N] [--json] [options of the server]

Say how well a model predicts a text, through the path that answers requests: with --quantization, --dtype and
whatever else a server takes, each the better the lower.

arguments:
  MODEL                folder in Hugging Face format, GGUF file, or ollama:NAME
  FILE                 text in UTF-8
options:
  --sequence-length N  tokens of a stretch, at whose beginning nothing is known (default: 512)
  --json               print one JSON object
  the others           those of the server, see `jserve --help`
"""


def parse_perplexity(argv: Sequence[str]) -> tuple[EngineConfig, Path, int, bool]:
    """Read the command line of `jserve perplexity`: the model with a server's options, the text, the length of a
    stretch, and whether JSON is wanted.
    """
    own = Parser(prog="jserve perplexity", add_help=False, allow_abbrev=False)
    own.add_argument("--sequence-length", type=parse_count, default=512, metavar="N")
    own.add_argument("--json", action="store_true")
    if {"-h", "--help"} & set(argv):
        own.exit(message=_PERPLEXITY_HELP)
    if len(argv) < 2 or any(name.startswith("-") for name in argv[:2]):
        own.error("which model, and which text? Begin with both: jserve perplexity MODEL FILE")
    options, rest = own.parse_known_args(list(argv[2:]))
    if options.sequence_length < 2:
        own.error(f"--sequence-length is {options.sequence_length} but must be at least 2")
    config, _ = with_local_files(*parse(["--model", argv[0], *rest]))
    return config, Path(argv[1]), options.sequence_length, options.json


def run(argv: Sequence[str]) -> None:
    """Print how well a model predicts a text."""
    config, file, length, as_json = parse_perplexity(argv)
    set_up_logging(config.log_level, config.log_format)
    measured = measure(config, read_text(file, "FILE"), length)
    if as_json:
        print(measured.as_json())
    else:
        mean = f"{measured.nats_per_token:.5f} nats a token over {measured.tokens:,} tokens"
        print(f"perplexity {measured.value:.4f}, {mean}")
