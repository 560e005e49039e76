"""Writes a store as `ollama pull` and `ollama create` leave it."""

import hashlib
import json
from pathlib import Path
from typing import Any

IMAGE = "application/vnd.ollama.image."


def add_blob(store: Path, content: bytes | Path) -> dict[str, Any]:
    """A blob under its digest, as a manifest names it. A file is linked, so that large ones cost nothing."""
    whole = content if isinstance(content, bytes) else content.read_bytes()
    digest = hashlib.sha256(whole).hexdigest()
    blob = store / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        blob.write_bytes(content)
    elif not blob.exists():
        blob.symlink_to(content.resolve())
    return {"digest": f"sha256:{digest}", "size": len(whole)}


def add_model(
    store: Path,
    gguf: bytes | Path | None,
    *,
    path: str = "registry.ollama.ai/library/tiny/latest",
    config: dict[str, Any] | None = None,
    **layers: Any,
) -> Path:
    """A manifest and its blobs. `layers` by kind: text, or what becomes JSON. Returns the manifest's path."""
    described = [] if gguf is None else [{"mediaType": f"{IMAGE}model", **add_blob(store, gguf)}]
    for kind, content in layers.items():
        text = content if isinstance(content, str) else json.dumps(content)
        described.append({"mediaType": IMAGE + kind, **add_blob(store, text.encode())})
    image = add_blob(store, json.dumps(config or {"model_format": "gguf", "model_family": "llama"}).encode())
    manifest = store / "manifests" / path
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(
        json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **image},
                "layers": described,
            }
        )
    )
    return manifest
