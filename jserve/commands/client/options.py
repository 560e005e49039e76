"""What `jserve chat`, `complete` and `run` have in common: the server, the model, the key, and what is sampled how."""

import argparse
from typing import Any

from jserve.commands.client.connection import DEFAULT_URL, Connection, ServerError

_SAMPLING = {
    "temperature": float, "top_p": float, "top_k": int, "min_p": float, "seed": int, "max_tokens": int,
    "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float,
}  # fmt: skip
"""Fields of a request that may be set on the command line and in a conversation."""


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which server, and how it samples."""
    parser.add_argument(
        "--url", default=DEFAULT_URL, metavar="URL", help=f"of the server, with or without /v1 (default: {DEFAULT_URL})"
    )
    parser.add_argument("--model-name", metavar="NAME", help="model (default: the first that the server names)")
    parser.add_argument(
        "--api-key", metavar="KEY", help="of the server (default: JSERVE_API_KEY or OPENAI_API_KEY, if set)"
    )
    for name, kind in _SAMPLING.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar="N", help="as in a request (default: the server's)"
        )


def sampling_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that were set."""
    return {name: getattr(options, name) for name in _SAMPLING if getattr(options, name) is not None}


def parse_field(name: str, text: str) -> Any:
    """The value of a sampling field. Raises ValueError, saying which there are or what the value must be."""
    kind = _SAMPLING.get(name)
    if kind is None:
        raise ValueError(f"there is no parameter {name}; these are there: {', '.join(_SAMPLING)}")
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} must be {'a whole number' if kind is int else 'a number'}, not {text}") from None


def connect(options: argparse.Namespace) -> tuple[Connection, str]:
    """The server, and the name of the model. Raises ServerError where none answers or the name is not served."""
    connection = Connection(options.url, options.api_key)
    names = connection.models()
    if not names:
        raise ServerError(f"{connection.url} serves no model")
    if options.model_name and options.model_name not in names:
        raise ServerError(f"{connection.url} serves {', '.join(names)}, not {options.model_name}")
    return connection, options.model_name or names[0]
