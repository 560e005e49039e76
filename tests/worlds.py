"""Tiny random models made by transformers, and engines over them."""

import json
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import msgspec
import numpy as np
import torch
import transformers

from jserve.config import EngineConfig
from jserve.engine.core import EngineCore
from jserve.protocol import Request, SamplingParams, TokenDelta
from jserve.runtime.program_keys import LogprobsOfFew, SampleFew, Step
from jserve.runtime.program_table import ProgramTable
from jserve.runtime.runner import Runner
from jserve.runtime.shapes import Bucket
from jserve.runtime.start import Started, start_runner
from tests.programs import HARDLY_OPTIMIZED, SHARED_PROGRAMS

SMALL = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

LATENT = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "num_key_value_heads": 4,
}
"""Fields of a tiny DeepSeek: a latent cache, a dense layer, then experts."""


def make_model(
    folder: Path, architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any
) -> Path:
    """Save a random model of a family; `fields` are those of its configuration."""
    torch.manual_seed(seed)
    model_type = getattr(transformers, architecture)
    config = model_type.config_class(**{**SMALL, "initializer_range": 0.2, **fields})
    randomized(model_type(config)).to(dtype).save_pretrained(folder)
    return folder


def make_whole_model(folder: Path, architecture: str, text: dict[str, Any], **fields: Any) -> Path:
    """Save a random model whose text part has the fields `text`; `fields` are those of the whole and of other parts."""
    torch.manual_seed(0)
    model_type = getattr(transformers, architecture)
    text = {**SMALL, "initializer_range": 0.2, **text}
    config = model_type.config_class(text_config=text, initializer_range=0.2, **fields)
    randomized(model_type(config)).save_pretrained(folder)
    return folder


def randomized(model: Any) -> Any:
    """In float32, with what a fresh model has as zeros and ones drawn as well."""
    model = model.to(torch.float32)
    for name, value in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            torch.nn.init.normal_(value, mean=float("norm" in name), std=0.2)
    for name, value in model.named_buffers():
        if name.endswith(("correction_bias", "expert_bias")):
            torch.nn.init.normal_(value, std=0.2)
        if name.endswith("layer_scalar"):
            torch.nn.init.normal_(value, mean=1.0, std=0.2)
    return model


def reference(folder: Path) -> Any:
    """The model in transformers: float32, eager attention."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    family = getattr(transformers, name)
    return family.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def reference_logits(model: Any, tokens: list[int]) -> np.ndarray:
    """f32[len(tokens), V]"""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def reference_greedy(model: Any, prompt: list[int], count: int, guess: list[int] | None = None) -> list[int]:
    """`count` greedy tokens, no stopping. A `guess` that is right takes one pass over it in place of `count`."""
    tokens = list(prompt)
    if guess:
        chosen = reference_logits(model, prompt + guess[:count])[len(prompt) - 1 :].argmax(-1).tolist()
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(guess[:count], chosen, strict=False)))
        tokens += chosen[:right]
    cache = None
    step = torch.tensor([tokens])
    with torch.no_grad():
        while len(tokens) < len(prompt) + count:
            out = model(step, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            tokens.append(int(out.logits[0, -1].argmax()))
            step = torch.tensor([tokens[-1:]])
    return tokens[len(prompt) :]


def add_few(runner: Runner) -> None:
    """What steps of many rows do for a few of them; engines have it some time after they are ready."""
    for program in runner.table.missing():
        if isinstance(program.key, SampleFew | LogprobsOfFew):
            runner.table.add(program)


def steps_of(table: ProgramTable) -> list[tuple[Bucket, jax.stages.Compiled]]:
    """The decoder steps that are there."""
    return [(key.bucket, program) for key, program in table.compiled.items() if isinstance(key, Step)]


def start_shared(config: EngineConfig, *, early: bool = False) -> Started:
    """A runner that shares programs with the others of this process. `early` compiles the fewest and hardly optimizes
    them: for what is compared within a tolerance, or in tokens, with a reference, not for what is equal in every bit.
    """
    if early:
        config = msgspec.structs.replace(config, compile_cache_dir=f"{config.compile_cache_dir}/early")
    with SHARED_PROGRAMS.used(HARDLY_OPTIMIZED if early else None):
        return start_runner(config, lambda *_: None, early=early)


def start_engine(model: Path | str, executables: str, *, early: bool = False, **options: Any) -> EngineCore:
    """An engine of small shapes; `early` as of `start_shared`."""
    sizes = {"dtype": "float32", "max_num_seqs": 4, "max_num_batched_tokens": 16, "page_size": 4}
    sizes |= {"kv_cache_memory_bytes": 4 << 20, **options}
    config = EngineConfig(model=str(model), compile_cache_dir=executables, **sizes)  # type: ignore[arg-type]
    return EngineCore(start_shared(config, early=early), enable_prefix_caching=config.enable_prefix_caching)


def run(
    core: EngineCore,
    prompts: dict[str, list[int]],
    params: SamplingParams,
    between: Callable[[int], None] | None = None,
) -> dict[str, list[TokenDelta]]:
    """Generate for all prompts at once. `between(step)` is called before every step."""
    deltas: dict[str, list[TokenDelta]] = {name: [] for name in prompts}
    for name, tokens in prompts.items():
        refused = core.add(Request(name, tokens, params))
        if refused is not None:
            deltas[name].append(refused)
    step = 0
    while not core.is_idle:
        if between is not None:
            between(step)
        for delta in core.step():
            deltas.setdefault(delta.request_id, []).append(delta)
        step += 1
    return deltas


def tokens_of(deltas: list[TokenDelta]) -> list[int]:
    """All tokens of one request."""
    return [token for delta in deltas for token in delta.token_ids]


def greedy(count: int, **fields: Any) -> SamplingParams:
    """`count` greedy tokens whatever they are."""
    return SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, **fields)


def numbers(array: np.ndarray) -> np.ndarray:
    """What weights say, however a device holds them: uint16 are the bits of bfloat16."""
    return array.view(ml_dtypes.bfloat16).astype(np.float32) if array.dtype == np.uint16 else array
