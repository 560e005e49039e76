"""The environment of processes that the server starts: without the secrets of its own.

A worker runs templates and grammars that came from elsewhere, and an engine has no use for keys either.
"""

import os
import re
from collections.abc import Mapping

_SECRET = re.compile(
    r"(?:^|_)(?:API_?KEYS?|ACCESS_KEY(?:_ID)?|SECRET(?:_KEY)?|TOKEN|PASSWORD|CREDENTIALS|OTLP_HEADERS)$"
)
"""Names such as JSERVE_API_KEY, AWS_SECRET_ACCESS_KEY, HF_TOKEN; not TOKENIZERS_PARALLELISM."""


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`environment` without the variables whose names say that they hold a secret."""
    return {name: value for name, value in environment.items() if not _SECRET.search(name.upper())}
