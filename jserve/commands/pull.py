"""`jserve pull NAME`: a model of the hub onto this machine, so that a later start needs no network."""

from collections.abc import Sequence

from jserve.checkpoint import is_ollama_name
from jserve.checkpoint.hub import fetch
from jserve.commands.hub_model import add_hub_options
from jserve.commands.parser import Parser
from jserve.errors import ConfigError
from jserve.log import set_up_logging


def run(argv: Sequence[str]) -> None:
    """Fetch, and print where the files are. Raises CheckpointError where that is not possible."""
    parser = Parser(prog="jserve pull", description="Fetch a model of the hub.", allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="ORG/NAME, or hf.co/ORG/NAME:Q4_K_M for a GGUF file of that kind")
    add_hub_options(parser)
    options = parser.parse_args(list(argv))
    if is_ollama_name(options.name) or "/" not in options.name:
        bare = options.name.removeprefix("ollama:")
        raise ConfigError(
            f"{bare} is a name of Ollama's library, which Ollama itself pulls: `ollama pull {bare}`, then "
            f"`jserve --model ollama:{bare}`. From the hub: jserve pull ORG/NAME"
        )
    set_up_logging("info", "text")
    print(fetch(options.name, revision=options.revision, folder=options.download_dir))
