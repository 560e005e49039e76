"""Finds out what kind of tokenizer a model's files hold. What is not needed is not imported."""

from pathlib import Path

from jserve.checkpoint import find_gguf
from jserve.text.tokenizer import Tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory or a GGUF file. Raises CheckpointError if there is none."""
    gguf = find_gguf(path)
    if gguf is not None:
        from jserve.text.gguf_tokenizer import load_gguf_tokenizer

        return load_gguf_tokenizer(gguf)
    from jserve.text.huggingface_tokenizer import load_huggingface_tokenizer

    return load_huggingface_tokenizer(Path(path))
