"""Finds out what kind of tokenizer a model's files hold. What is not needed is not imported."""

import logging
from pathlib import Path

from jserve.checkpoint import find_gguf, find_ollama_model, is_ollama_name
from jserve.text.tokenizers.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model and its chat templates. Raises CheckpointError if there is none.

    Of a model in Ollama's store, the GGUF file's own chat template counts; where it has none, the manifest's,
    translated from Go.
    """
    gguf = find_gguf(path)
    if gguf is not None:
        from jserve.text.tokenizers.gguf import load_gguf_tokenizer

        tokenizer = load_gguf_tokenizer(gguf)
        if not tokenizer.chat_templates and is_ollama_name(path) and (source := find_ollama_model(path).template):
            _take_go_template(tokenizer, source)
        return tokenizer
    from jserve.text.tokenizers.huggingface import load_huggingface_tokenizer

    return load_huggingface_tokenizer(Path(path))


def _take_go_template(tokenizer: Tokenizer, source: str) -> None:
    from jserve.text.templates.go import GoTemplateError, with_bos

    try:
        tokenizer.chat_templates["default"] = with_bos(source, tokenizer)
    except GoTemplateError as error:
        logger.warning(
            "the model has no chat template: that of its manifest cannot be translated from Go (%s); "
            "start the server with --chat-template FILE (Jinja)",
            error,
        )
