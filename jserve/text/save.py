"""Writes a tokenizer and its chat templates as a Hugging Face directory has them."""

import json
from pathlib import Path

from jserve.text.tokenizers.huggingface import ROLES
from jserve.text.tokenizers.tokenizer import Tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, which `load_tokenizer` makes the same tokenizer of."""
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    templates = tokenizer.chat_templates
    roles = {role: token for role, token in tokenizer.special_tokens.items() if role in ROLES}
    config: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    if own := {role: token for role, token in tokenizer.special_tokens.items() if role not in ROLES}:
        config["extra_special_tokens"] = own
    if set(templates) == {"default"}:
        config["chat_template"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")
