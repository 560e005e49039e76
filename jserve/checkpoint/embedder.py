"""What makes a model one for embeddings, and how it wants its texts: from the files of sentence-transformers, or the
metadata of a GGUF file.

A checkpoint puts what these say into its configuration, under `KEY`; everybody else reads it from there.
"""

from __future__ import annotations

import re
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
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_ORDER = re.compile(r"T(P(D*)N?)?")
"""The order in which modules may stand, by their first letters."""
_ACTIVATIONS = {
    "Identity": "identity",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
"""Classes of torch, by the names of `layers/dense.py`."""
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
CLASSIFIES = "ForSequenceClassification"
"""What the name of a model ends with that gives labels in place of a vector."""
LOGIT_SCORE = "LogitScore"
"""The module of a decoder that ranks by the logits of two tokens."""
_HEADS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A product behind the pooling. Its tensors are the folder's, under the folder's name."""

    folder: str
    inputs: int
    outputs: int
    activation: str
    """One of the values of `_ACTIVATIONS`."""
    bias: bool


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
    dense: tuple[DenseModule, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any], *, source: Path | str) -> Embedder | None:
        """From a checkpoint's configuration; None for a model that generates. A model without a head and without
        sentence-transformers' files is pooled as its kind mostly is: a decoder's last token, an encoder's mean.

        Raises CheckpointError where its files ask for what is not supported.
        """
        facts, names = config.get(KEY), config.get("architectures")
        name = str(names[0]) if isinstance(names, list) and names else ""
        if name.endswith(CLASSIFIES) or (facts is None and (not name or name.endswith(_HEADS))):
            return None
        facts = facts if isinstance(facts, Mapping) else {}
        modules = _texts(facts.get("modules"))
        if LOGIT_SCORE in modules:
            return None
        _refuse_modules(modules, source)
        prompts, default = _prompts(facts, source)
        longest = facts.get("max_seq_length")
        return cls(
            pooling=_pooling(facts, _is_encoder(name) or config.get("is_causal") is False, source),
            max_tokens=longest if type(longest) is int and longest > 0 else None,
            lowercases=facts.get("do_lower_case") is True,
            prompts=prompts,
            default_prompt=default,
            dense=tuple(_dense_module(module, source) for module in facts.get("dense") or ()),
        )


def with_embedder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`config` with what sentence-transformers' files in the folder say, where they are there."""
    prompts = folder / "config_sentence_transformers.json"
    stated = read_json(prompts, limit=_LIMIT) if prompts.exists() else {}
    if isinstance(stated.get("activation_fn"), str):  # of a cross-encoder's scores
        config = {**config, "sentence_transformers": {"activation_fn": stated["activation_fn"]}}
    if not (folder / MODULES).exists():
        return config
    modules = parse_json(read_bounded(folder / MODULES, _LIMIT), folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{folder / MODULES} must hold a list of modules")
    facts: dict[str, Any] = {"modules": [str(module.get("type", "")).rpartition(".")[2] for module in modules]}
    for module, kind in zip(modules, facts["modules"], strict=True):
        if kind == "Pooling":
            facts["pooling"] = _read_pooling(folder / _plain_name(module.get("path"), folder) / "config.json")
        elif kind == LOGIT_SCORE:
            facts[kind] = read_json(folder / _plain_name(module.get("path"), folder) / "config.json", limit=_LIMIT)
        elif kind == "Dense":
            name = _plain_name(module.get("path"), folder)
            facts.setdefault("dense", []).append(
                {**read_json(folder / name / "config.json", limit=_LIMIT), "folder": name}
            )
    for file in sorted(folder.glob("sentence_*_config.json")):  # its name has had the model's kind in it
        facts |= _some(read_json(file, limit=_LIMIT), ("max_seq_length", "do_lower_case"))
    facts |= _some(stated, ("prompts", "default_prompt_name"))
    return {**config, KEY: facts}


def ranking_tokens(config: Mapping[str, Any], *, source: Path | str) -> tuple[int, int] | None:
    """The tokens with which a decoder says that a document is relevant and that it is not, where its files name them.

    Raises CheckpointError where they are not two.
    """
    facts = config.get(KEY)
    stated = facts.get(LOGIT_SCORE) if isinstance(facts, Mapping) else None
    if stated is None:
        return None
    names = ("true_token_id", "false_token_id")
    tokens = [stated.get(name) for name in names] if isinstance(stated, Mapping) else []
    relevant, other = (token if type(token) is int and token >= 0 else None for token in (*tokens, None, None)[:2])
    if relevant is None or other is None:
        raise CheckpointError(
            f"{source}: its module {LOGIT_SCORE} names the tokens {tokens}; supported are a true_token_id and a "
            "false_token_id"
        )
    return relevant, other


def module_folders(config: Mapping[str, Any]) -> list[str]:
    """Folders beside the model's files that hold weights, from its configuration."""
    facts = config.get(KEY)
    dense = facts.get("dense") if isinstance(facts, Mapping) else None
    return [str(module["folder"]) for module in dense or ()]


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
    if modules and not _ORDER.fullmatch("".join(name[0] for name in modules)):
        raise CheckpointError(
            f"{source}: its {MODULES} has {', '.join(modules)}; supported is the order {', '.join(_MODULES)}"
        )


def _dense_module(raw: Mapping[str, Any], source: Path | str) -> DenseModule:
    folder, inputs, outputs = (raw.get(name) for name in ("folder", "in_features", "out_features"))
    activation = str(raw.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    are_sizes = type(inputs) is int and type(outputs) is int and inputs > 0 and outputs > 0
    if not are_sizes or activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"{source}: its Dense module {folder!r} has sizes {inputs!r} and {outputs!r} and activation_function "
            f"{activation!r}; supported are positive sizes and {', '.join(_ACTIVATIONS)}"
        )
    if any(raw.get(name) not in (None, "sentence_embedding") for name in ("module_input_name", "module_output_name")):
        raise CheckpointError(f"{source}: its Dense module {folder!r} reads or writes something else than the vector")
    return DenseModule(str(folder), int(inputs), int(outputs), _ACTIVATIONS[activation], raw.get("bias") is not False)  # type: ignore[arg-type]


def _pooling(facts: Mapping[str, Any], sees_both_ways: bool, source: Path | str) -> Pooling:
    stated = facts.get("pooling")
    if not isinstance(stated, Mapping):
        return "mean" if sees_both_ways else "last"
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
