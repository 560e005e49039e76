"""GET /, /api/version, /api/tags, /api/ps and POST /api/show: the one model, under each name that it is served by."""

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jserve.api.context import ServerContext, context_of
from jserve.api.http.body import read_body
from jserve.api.json_writer import JsonResponse
from jserve.api.model.served_model import ServedModel
from jserve.api.ollama.bodies import ShowBody
from jserve.api.ollama.capabilities import capabilities
from jserve.api.ollama.names import served_name, tagged
from jserve.api.ollama.options import OLLAMA_DEFAULTS
from jserve.api.ollama.timestamps import NEVER, rfc3339
from jserve.checkpoint import OllamaModel
from jserve.errors import EngineUnavailableError

API_VERSION = "0.14.3"
"""The release of Ollama whose API this is. Clients compare it, as three numbers, with what they need (VS Code's
Copilot: 0.6.4; logprobs: 0.12.11; those that use Ollama's /v1/messages: 0.14), so jserve's own version, which
/version tells, would turn them away."""

_CONFIG_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""GGUF's names, after the architecture, and those of `config.json`."""


async def ollama_version(request: Request) -> Response:
    """The release of Ollama whose API this is."""
    return JsonResponse({"version": API_VERSION})


async def tags(request: Request) -> Response:
    """The served model, once for each of its names."""
    server = context_of(request)
    model = _model(server)
    return JsonResponse({"models": [_card(name, model) for name in server.listed_names]})


async def ps(request: Request) -> Response:
    """The served model once it is ready: it never expires. On a device other than a CPU all of it is there."""
    server = context_of(request)
    ready = server.client.ready
    if server.loaded_model is None or ready is None:
        return JsonResponse({"models": []})
    card = _card(server.settings.listed_names[0], server.loaded_model)
    del card["modified_at"], card["capabilities"]
    card["expires_at"] = NEVER
    card["size_vram"] = 0 if ready.device.lower().startswith("cpu") else card["size"]
    card["context_length"] = server.loaded_model.facts.max_model_len
    return JsonResponse({"models": [card]})


async def show(request: Request) -> Response:
    """Everything about the model. `verbose` adds its tensors."""
    server = context_of(request)
    body = await read_body(request, ShowBody, any_media_type=True)
    model = _model(server)
    served_name(server.settings, body.model_name)
    parameters = _parameters(model)
    lines = _parameter_lines(parameters)
    ollama = model.ollama or OllamaModel("", Path(), Path())
    name = tagged(body.model_name or model.name)
    shown: dict[str, Any] = {
        "license": ollama.license,
        "modelfile": "\n".join([f"FROM {name}", *(f"PARAMETER {key} {value}" for key, value in lines)]),
        "parameters": "\n".join(f"{key:<30} {value}" for key, value in lines),
        "template": model.template.sources.get("default", ""),
        "system": ollama.system,
        "details": _details(model),
        "model_info": _model_info(model),
        "capabilities": capabilities(model),
        "modified_at": rfc3339(int(model.files.modified * 1e9)),
    }
    if body.verbose:
        shown["tensors"] = [
            {"name": name, "type": info.stored, "shape": list(info.shape)} for name, info in model.files.tensors.items()
        ]
    return JsonResponse(shown)


def parameter_size(count: int) -> str:
    """A number of parameters as Ollama writes it: 134.52M, 8.0B."""
    for unit, letter, digits in ((1e9, "B", 1), (1e6, "M", 2), (1e3, "K", 0)):
        if count >= unit:
            return f"{count / unit:.{0 if count % unit == 0 else digits}f}{letter}"
    return str(count)


def _model(server: ServerContext) -> ServedModel:
    if server.loaded_model is None:
        raise EngineUnavailableError("the model's files are still being read; try again in a few seconds")
    return server.loaded_model


def _card(name: str, model: ServedModel) -> dict[str, Any]:
    return {
        "name": tagged(name),
        "model": tagged(name),
        "modified_at": rfc3339(int(model.files.modified * 1e9)),
        "size": model.files.num_bytes,
        "digest": model.files.digest,
        "details": _details(model),
        "capabilities": capabilities(model),
    }


def _details(model: ServedModel) -> dict[str, Any]:
    files = model.files
    return {
        "parent_model": "",
        "format": files.format,
        "family": files.architecture,
        "families": [files.architecture],
        "parameter_size": parameter_size(files.num_parameters),
        "quantization_level": files.quantization,
    }


def _model_info(model: ServedModel) -> dict[str, Any]:
    """The model's shape under GGUF's keys.

    The context is the server's where that is shorter: clients cut their prompts by it, and a longer one is refused.
    """
    files, architecture = model.files, model.files.architecture
    lengths = [files.config.get("max_position_embeddings"), model.facts.max_model_len]
    info: dict[str, Any] = {
        "general.architecture": architecture,
        "general.parameter_count": files.num_parameters,
        f"{architecture}.context_length": min((length for length in lengths if length), default=0),
    }
    for key, source in _CONFIG_KEYS.items():
        if files.config.get(source) is not None:
            info[f"{architecture}.{key}"] = files.config[source]
    return info


def _parameters(model: ServedModel) -> dict[str, Any]:
    """The defaults of a request without options."""
    defaults = model.defaults.over(OLLAMA_DEFAULTS)
    return {
        "num_ctx": model.facts.max_model_len,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
        "stop": [json.dumps(stop, ensure_ascii=False) for stop in defaults.stop],
    }


def _parameter_lines(parameters: dict[str, Any]) -> list[tuple[str, Any]]:
    """A line for each value, as `ollama show` has it."""
    return [(key, one) for key, value in parameters.items() for one in (value if isinstance(value, list) else [value])]
