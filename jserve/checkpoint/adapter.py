"""A folder that holds a LoRA adapter and no model: what it is, in words for who takes it for one."""

from pathlib import Path

from jserve.checkpoint.json_file import read_json
from jserve.errors import CheckpointError

ADAPTER = "adapter_config.json"
_LIMIT = 1 << 20


def adapter_refusal(folder: Path) -> str:
    """Why the folder is not served, with the model that the adapter is for."""
    try:
        base = read_json(folder / ADAPTER, limit=_LIMIT).get("base_model_name_or_path")
    except CheckpointError:
        base = None
    named = f" of {base!r}" if isinstance(base, str) and base else ""
    return (
        f"{folder} holds a LoRA adapter{named} ({ADAPTER}) and no model. Adapters are not supported: merge it into its "
        "base model (peft: model.merge_and_unload().save_pretrained(folder)) and serve the result"
    )
