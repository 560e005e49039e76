"""Whether a checkpoint that says its output projection is the token table has a trained one of its own.

Some training codes set `tie_word_embeddings` and save another `lm_head.weight`. What was trained is the truth: it is
served, and the log says so. One that equals the table is the same once more.
"""

import logging
from dataclasses import replace

import numpy as np

from jserve.checkpoint import Checkpoint
from jserve.config import ModelConfig
from jserve.layers.source import as_known, spellings

logger = logging.getLogger(__name__)

_HEADS = ("lm_head.weight", "embed_out.weight")
_TABLES = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
_ROWS = 4096
"""Rows that are compared at a time; where they differ, they mostly do in the first."""


def with_trained_head(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """`config`, untied where the checkpoint's output projection is not the token table."""
    if not config.tie_word_embeddings or checkpoint.format == "converted":
        return config
    head, table = _spelled(_HEADS, checkpoint), _spelled(_TABLES, checkpoint)
    if head is None or table is None or _are_equal(head, table, checkpoint):
        return config
    logger.warning(
        "%s: tie_word_embeddings is true, but %s is not %s; the output projection is %s, which was trained",
        checkpoint.path,
        head,
        table,
        head,
    )
    return replace(config, tie_word_embeddings=False)


def _spelled(names: tuple[str, ...], checkpoint: Checkpoint) -> str | None:
    tensors = checkpoint.tensors()
    return next((variant for name in names for variant in spellings(name) if variant in tensors), None)


def _are_equal(head: str, table: str, checkpoint: Checkpoint) -> bool:
    """Bit for bit, piece by piece. Of different shapes they are not: loading then says which is wrong."""
    tensors = checkpoint.tensors()
    if tensors[head].shape != tensors[table].shape:
        return False
    rows = tensors[head].shape[0]
    for first in range(0, rows, _ROWS):
        part = (slice(first, min(first + _ROWS, rows)),)
        mine, other = (checkpoint.read(name, part) for name in (head, table))
        if mine.dtype != other.dtype:
            mine, other = mine.astype(np.float32), other.astype(np.float32)
        if not np.array_equal(as_known(mine), as_known(other)):
            return False
    return True
