"""Names of models: Ollama's clients write `name:tag`, and `:latest` where nobody gave a tag."""

from jserve.api.settings import ServerSettings
from jserve.errors import UnknownModelError

_LATEST = ":latest"
_MAX_SHOWN = 200


def tagged(name: str) -> str:
    """The name with its tag. A colon in a registry's address, before the last slash, is none."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST


def served_name(settings: ServerSettings, name: str) -> str:
    """The server's spelling of `name`; "" means the only model. Raises UnknownModelError in Ollama's words."""
    if not name:
        return ""
    for served in settings.model_names:
        if tagged(served) == tagged(name):
            return served
    raise UnknownModelError(f"model '{name[:_MAX_SHOWN]}' not found", param="model")
