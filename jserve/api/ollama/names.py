"""Names of models: Ollama's clients write `name:tag`, and `:latest` where nobody gave a tag."""

from jserve.api.settings import ServerSettings
from jserve.errors import UnknownModelError

_LATEST = ":latest"
_MAX_SHOWN = 200


def tagged(name: str) -> str:
    """The name with its tag. A colon in a registry's address, before the last slash, is none."""
    return name if ":" in name.rpartition("/")[2] else name + _LATEST


def check_model_name(settings: ServerSettings, name: str) -> None:
    """Raise UnknownModelError, in Ollama's words, unless `name` is served; "" means the served model."""
    if name and tagged(name) not in {tagged(served) for served in settings.model_names}:
        raise UnknownModelError(f"model '{name[:_MAX_SHOWN]}' not found", param="model")
