"""Models that Ollama has pulled: a name to the files in its store.

A store holds `manifests/HOST/NAMESPACE/MODEL/TAG`, JSON that lists layers by digest, and `blobs/sha256-HEX`, the
layers. Names and manifests are written by others: no part of either leads out of the store. Needs no numpy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jserve.checkpoint.json_file import parse_json, read_bounded, read_json
from jserve.errors import CheckpointError

PREFIX = "ollama:"
_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HOST_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(:\d{1,5})?")
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_LAYER = "application/vnd.ollama.image."
_SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")
"""Where Ollama's Linux service keeps its models."""
KEPT = "ollama.json"
"""In a folder that is made of a pulled model: what its manifest says besides the weights."""
_TEXTS = ("name", "template", "system", "license")
_MAX_TEXT = 4 << 20
"""Bytes of a layer that is text: templates and system prompts have kilobytes."""


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A pulled model. `template` is a Go template, "" where the manifest has none; `unused` names layers that
    have no effect here.
    """

    name: str
    manifest: Path
    gguf: Path
    template: str = ""
    system: str = ""
    license: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()
    unused: tuple[str, ...] = ()

    def describe_unused(self) -> str | None:
        """A sentence about layers that are there and have no effect, or None."""
        what = {"projector": "images (its projector)", "draft": "its draft model"}
        named = " and ".join(what[kind] for kind in self.unused)
        return f"{self.name}: {named} are not supported; it serves text only" if named else None


@dataclass(frozen=True, slots=True)
class _Name:
    """A name's four parts, each one plain component of a path."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> _Name:
        *path, last = text.removeprefix("//").split("/")
        model, _, tag = last.partition(":")
        host, namespace = [_HOST, _NAMESPACE][: 2 - len(path)] + path if len(path) <= 2 else ("", "")
        name = cls(host, namespace, model, tag or _TAG)
        if not (_HOST_PART.fullmatch(host) and all(_PART.fullmatch(p) for p in (namespace, model, name.tag))):
            raise CheckpointError(
                f"{PREFIX}{text[:200]} is not a model's name; write it as Ollama does: "
                "ollama:llama3.2, ollama:llama3.2:1b or ollama:hf.co/org/repo:Q4_K_M"
            )
        return name

    @property
    def parts(self) -> tuple[str, str, str, str]:
        return (self.host, self.namespace, self.model, self.tag)

    @property
    def shown(self) -> str:
        """As `ollama list` writes it."""
        shortened = [self.namespace] if self.namespace != _NAMESPACE else []
        path = shortened if self.host == _HOST else [self.host, self.namespace]
        return "/".join([*path, f"{self.model}:{self.tag}"])


def is_ollama_name(model: str | Path) -> bool:
    """Whether `--model` means a model of Ollama's store."""
    return str(model).startswith(PREFIX)


def find_ollama_model(model: str | Path) -> OllamaModel:
    """The files of `ollama:NAME[:TAG]`, where Ollama or `OLLAMA_MODELS` keeps them.

    Raises CheckpointError where it is not pulled, is incomplete, or has what no model here can do (adapters).
    """
    name = _Name.parse(str(model).removeprefix(PREFIX).removesuffix("/"))
    stores = _stores()
    for store in stores:
        manifest = _find_manifest(store, name)
        if manifest is not None:
            return _read_model(store, manifest, name)
    pulled = [candidate for store in stores for candidate in _pulled(store)]
    listed = ", ".join(pulled[:8]) + (", ..." if len(pulled) > 8 else "")
    raise CheckpointError(
        f"{name.shown} is not among the models that Ollama has pulled to {' or '.join(map(str, stores))}; "
        + (f"these are: {listed}" if pulled else "there are none")
        + f". Run `ollama pull {name.shown}`, or set OLLAMA_MODELS to its store"
    )


def pulled_ollama_models() -> list[str]:
    """`ollama:NAME:TAG` of every model in the stores."""
    return [f"{PREFIX}{name}" for store in _stores() for name in _pulled(store)]


def pulled_models() -> list[OllamaModel]:
    """All that Ollama has pulled here and that can be served; the others are passed over."""
    models = []
    for store in _stores():
        for manifest in _manifests(store):
            with suppress(CheckpointError, OSError):
                models.append(_read_model(store, manifest, _Name(*manifest.parts[-4:])))
    return models


def keep_ollama_model(model: OllamaModel, folder: Path) -> None:
    """Write the texts and parameters of a pulled model's manifest into a folder that is made of it."""
    kept = {name: getattr(model, name) for name in (*_TEXTS, "parameters", "messages")}
    (folder / KEPT).write_text(json.dumps(kept, ensure_ascii=False, indent=2) + "\n", "utf-8")


def kept_ollama_model(folder: Path) -> OllamaModel | None:
    """What `keep_ollama_model` wrote, None where it wrote nothing. Raises CheckpointError where it is damaged."""
    path = folder / KEPT
    if not path.is_file():
        return None
    content = read_json(path, limit=_MAX_TEXT)
    texts = {name: content.get(name, "") for name in _TEXTS}
    parameters, messages = content.get("parameters", {}), content.get("messages", [])
    is_whole = all(isinstance(text, str) for text in texts.values()) and isinstance(parameters, dict)
    if not is_whole or not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise CheckpointError(f"{path} is not what jserve writes: texts, parameters and messages of a model of Ollama")
    return OllamaModel(manifest=path, gguf=Path(), parameters=parameters, messages=tuple(messages), **texts)


def _stores() -> list[Path]:
    folder = os.environ.get("OLLAMA_MODELS")
    return [Path(folder).expanduser()] if folder else [Path.home() / ".ollama" / "models", _SERVICE_STORE]


def _find_manifest(store: Path, name: _Name) -> Path | None:
    """Ollama's names do not distinguish case; what is written as it was pulled is found without a search."""
    path = store.joinpath("manifests", *name.parts)
    if _is_file(path):
        return path
    wanted = tuple(part.lower() for part in name.parts)
    return next((p for p in _manifests(store) if tuple(part.lower() for part in p.parts[-4:]) == wanted), None)


def _manifests(store: Path) -> list[Path]:
    try:
        return [path for path in sorted(store.glob("manifests/*/*/*/*")) if _is_file(path)]
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _pulled(store: Path) -> list[str]:
    return [_Name(*path.parts[-4:]).shown for path in _manifests(store)]


def _read_model(store: Path, manifest: Path, name: _Name) -> OllamaModel:
    content = read_json(manifest, limit=_MAX_TEXT)
    layers = content.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise CheckpointError(f"{manifest} is not a manifest of Ollama: it has no list of layers")
    store_layers = _Layers(store, manifest, layers)
    config = store_layers.config(content.get("config"))
    if config.get("remote_host") or config.get("remote_model"):
        raise CheckpointError(f"{name.shown} runs in Ollama's cloud; there are no weights of it in {store}")
    if store_layers.of("adapter"):
        raise CheckpointError(
            f"{name.shown} has an adapter (LoRA), which is not supported; merge it into the model's weights"
        )
    weights = store_layers.of("model")
    if not weights and store_layers.of("tensor"):
        raise CheckpointError(
            f"{name.shown} is stored tensor by tensor for MLX, which is not supported; pull a GGUF build of it"
        )
    if len(weights) != 1:
        raise CheckpointError(f"{manifest} lists {len(weights)} layers of weights (…image.model) but must list one")
    return OllamaModel(
        name=name.shown,
        manifest=manifest,
        gguf=store_layers.blob(weights[0]),
        template=store_layers.text("template") or store_layers.text("prompt"),
        system=store_layers.text("system"),
        license=store_layers.text("license"),
        parameters=store_layers.parameters(),
        messages=store_layers.messages(),
        unused=tuple(kind for kind in ("projector", "draft") if store_layers.of(kind)),
    )


class _Layers:
    """The layers of one manifest, by kind."""

    def __init__(self, store: Path, manifest: Path, layers: list[dict[str, Any]]) -> None:
        self._store = store
        self._manifest = manifest
        self._layers = layers

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [layer for layer in self._layers if layer.get("mediaType") == _LAYER + kind]

    def blob(self, layer: Mapping[str, Any]) -> Path:
        """The file of a layer: there, and as long as the manifest says."""
        digest = layer.get("digest")
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None:
            raise CheckpointError(
                f"{self._manifest} names a layer {str(digest)[:100]!r}, which is not a SHA-256 digest"
            )
        path = self._store / "blobs" / f"sha256-{match[1].lower()}"
        if not _is_file(path):
            raise CheckpointError(f"{path} is missing although {self._manifest} names it; pull the model again")
        size, actual = layer.get("size"), path.stat().st_size
        if isinstance(size, int) and size != actual:
            raise CheckpointError(
                f"{path} has {actual:,} bytes but {self._manifest} says {size:,}; "
                "it is incomplete, pull the model again"
            )
        return path

    def config(self, entry: Any) -> dict[str, Any]:
        return read_json(self.blob(entry), limit=_MAX_TEXT) if isinstance(entry, dict) and entry.get("digest") else {}

    def text(self, kind: str) -> str:
        """All layers of a kind, one below the other."""
        texts = []
        for layer in self.of(kind):
            path = self.blob(layer)
            try:
                texts.append(read_bounded(path, _MAX_TEXT).decode())
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{path}, the {kind} of {self._manifest}, is not UTF-8: {error}") from None
        return "\n".join(texts)

    def parameters(self) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for layer in self.of("params"):
            merged |= read_json(self.blob(layer), limit=_MAX_TEXT)
        return merged

    def messages(self) -> tuple[Mapping[str, str], ...]:
        messages: list[Mapping[str, str]] = []
        for layer in self.of("messages"):
            path = self.blob(layer)
            listed = parse_json(read_bounded(path, _MAX_TEXT), path)
            if not isinstance(listed, list) or not all(_is_message(entry) for entry in listed):
                raise CheckpointError(f"{path} must hold a list of messages, each with a role and a content")
            messages += [{"role": entry["role"], "content": entry["content"]} for entry in listed]
        return tuple(messages)


def _is_message(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.get("role") in ("system", "user", "assistant")
        and isinstance(entry.get("content"), str)
    )
