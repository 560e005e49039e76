"""What makes a model one for embeddings, and how it wants its texts: from the files of sentence-transformers, or the
metadata of a GGUF file.

A checkpoint puts what these say into its configuration, under `KEY`; everybody else reads it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jserve.checkpoint.json_file import parse_json, read_bounded, read_json
from jserve.errors import CheckpointError
from jserve.protocol import Pooling

KEY = "jserve_embedder"
MODULES = "modules.json"
_LIMIT = 1 << 20
"""Bytes of any of these files."""
_MAX_PROMPTS = 1_000
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLINGS: dict[str, Pooling] = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",  # the sum over the root of the length: of the mean's direction
    "last": "last",
    "lasttoken": "last",
}
"""By sentence-transformers' names, the older ones without `pooling_mode_`."""
_GGUF_POOLINGS = {1: "mean", 2: "cls", 3: "last"}
"""`enum llama_pooling_type` of llama.cpp; 0 is none, and 4 a score in place of a vector."""
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True)
class Embedder:
    """How the texts of a model that generates nothing are made vectors. `max_tokens`: what it was trained for."""

    pooling: Pooling
    max_tokens: int | None = None
    lowercases: bool = False
    """Whether texts are made lower case before they are tokenized."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """What can be put before a text, by name: for queries and documents, as a rule."""
    default_prompt: str = ""
    """What is put before a text where no name is given."""

    @classmethod
    def of(cls, config: Mapping[str, Any], *, source: Path | str) -> Embedder | None:
        """From a checkpoint's configuration; None for a model that generates. A model without a head and without
        sentence-transformers' files is pooled as its kind mostly is: a decoder's last token, an encoder's mean.

        Raises CheckpointError where its files ask for what is not supported.
        """
        facts, names = config.get(KEY), config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        if facts is None and (not name or name.endswith(_HEADS)):
            return None
        facts = facts if isinstance(facts, Mapping) else {}
        _refuse_modules(_texts(facts.get("modules")), source)
        prompts, default = _prompts(facts, source)
        longest = facts.get("max_seq_length")
        return cls(
            pooling=_pooling(facts, name, source),
            max_tokens=longest if type(longest) is int and longest > 0 else None,
            lowercases=facts.get("do_lower_case") is True,
            prompts=prompts,
            default_prompt=default,
        )


def with_embedder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`config` with what sentence-transformers' files in the folder say, where they are there."""
    if not (folder / MODULES).exists():
        return config
    modules = parse_json(read_bounded(folder / MODULES, _LIMIT), folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / MODULES} must hold a list of modules")
    facts: dict[str, Any] = {"modules": [str(module.get("type", "")).rpartition(".")[2] for module in modules]}
    for module, kind in zip(modules, facts["modules"], strict=True):
        if kind == "Pooling":
            facts["pooling"] = _read_pooling(folder / _plain_name(module.get("path"), folder) / "config.json")
    for file in sorted(folder.glob("sentence_*_config.json")):  # its name has had the model's kind in it
        facts |= _some(read_json(file, limit=_LIMIT), ("max_seq_length", "do_lower_case"))
    prompts = folder / "config_sentence_transformers.json"
    if prompts.exists():
        facts |= _some(read_json(prompts, limit=_LIMIT), ("prompts", "default_prompt_name"))
    return {**config, KEY: facts}


def with_gguf_embedder(config: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the pooling that a GGUF file names, where it does: it is then one for embeddings."""
    prefix = metadata["general.architecture"]
    number = metadata.get(f"{prefix}.pooling_type")
    mode = _GGUF_POOLINGS.get(number) if isinstance(number, int) else None
    if mode is None:
        return config
    causal = {"is_causal": False} if metadata.get(f"{prefix}.attention.causal") is False else {}
    return {**config, **causal, KEY: {"pooling": {"modes": [mode]}}}


def _read_pooling(file: Path) -> dict[str, Any]:
    """The modes that are on, under sentence-transformers' names, and whether prompts are pooled too."""
    raw = read_json(file, limit=_LIMIT)
    newer = raw.get("pooling_mode")
    modes = [newer] if isinstance(newer, str) else newer if isinstance(newer, list) else []
    modes = [*modes, *(name for name, is_on in raw.items() if name.startswith("pooling_mode_") and is_on is True)]
    names = [str(mode).removeprefix("pooling_mode_") for mode in modes]
    return {"modes": names, "include_prompt": raw.get("include_prompt") is not False}


def _plain_name(path: Any, folder: Path) -> str:
    """A module's folder, inside the model's. It is untrusted input."""
    if not isinstance(path, str) or path in ("", ".", "..") or Path(path).name != path or "\\" in path:
        raise CheckpointError(f"{folder / MODULES} names {path!r}, which is not a folder of the model's")
    return path


def _some(raw: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: raw[name] for name in names if raw.get(name) is not None}


def _texts(value: Any) -> list[str]:
    return list(map(str, value)) if isinstance(value, list) else []


def _refuse_modules(modules: list[str], source: Path | str) -> None:
    unknown = [name for name in modules if name not in _MODULES]
    if unknown:
        raise CheckpointError(
            f"{source}: its {MODULES} has a module {unknown[0]!r}; supported are {', '.join(_MODULES)}"
        )


def _pooling(facts: Mapping[str, Any], architecture: str, source: Path | str) -> Pooling:
    stated = facts.get("pooling")
    if not isinstance(stated, Mapping):
        return "mean" if _is_encoder(architecture) else "last"
    modes = _texts(stated.get("modes"))
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        listed = ", ".join(modes) or "none"
        raise CheckpointError(
            f"{source}: its pooling is {listed}; supported is one of cls, mean, mean_sqrt_len and lasttoken"
        )
    pooling = _POOLINGS[modes[0]]
    if stated.get("include_prompt") is False and pooling != "last":
        raise CheckpointError(f"{source}: pooling that leaves the prompt out (include_prompt) is not supported")
    return pooling


def _is_encoder(architecture: str) -> bool:
    """Whether it is of the BERT family, which has no causal mask."""
    return "Bert" in architecture or "Roberta" in architecture


def _prompts(facts: Mapping[str, Any], source: Path | str) -> tuple[dict[str, str], str]:
    """The prompts by name, and the text of the default one."""
    prompts = facts.get("prompts") or {}
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str) for text in prompts.values()):
        raise CheckpointError(f"{source}: prompts must be an object of texts by name")
    if len(prompts) > _MAX_PROMPTS:
        raise CheckpointError(f"{source}: there are {len(prompts):,} prompts but at most {_MAX_PROMPTS:,} are taken")
    default = facts.get("default_prompt_name")
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise CheckpointError(f"{source}: default_prompt_name is {default!r}, which is not one of the prompts")
    return {str(name): text for name, text in prompts.items()}, prompts[default] if default is not None else ""
