"""The offline API: the same engine, in this process, without a server.

from jserve import LLM, SamplingParams
outputs = LLM("path/to/model").generate(["The capital of France is"], SamplingParams(max_tokens=20))
"""

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np
from tqdm import tqdm

from jserve.config import EngineConfig
from jserve.constrain.bits import fixed_tokens, is_empty
from jserve.engine.core import make_core
from jserve.errors import EngineFailedError, RequestError
from jserve.progress import StartupBars
from jserve.protocol import (
    MAX_CHOSEN,
    MAX_LOGPROBS,
    FinishReason,
    Pooling,
    Request,
    SamplingParams,
    TokenDelta,
    TokenLogprobs,
)
from jserve.runtime.platform import choose_platform
from jserve.runtime.start import start_runner, stored_programs
from jserve.text.load import load_tokenizer
from jserve.text.output.repetition import RepetitionDetector
from jserve.text.output.stop import StopMatcher
from jserve.text.templates.chat_template import ChatTemplate
from jserve.text.tokenizers.detokenizer import IncrementalDetokenizer
from jserve.text.tokenizers.token_rows import check_named_tokens, check_prompt_tokens

Prompt = str | Sequence[int]
Message = dict[str, Any]


@dataclass(slots=True)
class CompletionOutput:
    """One choice. `stop_reason` is the stop string or the stop token that ended it, None for anything else.

    `error` explains finish_reason "error": a grammar that does not compile, or that cannot go on.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | Literal["repetition"] | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt with its choices."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Logprobs of the prompt's second to last token, where the parameters want them."""
    embedding: np.ndarray | None = None
    """f32[E] of length 1, from `LLM.embed`."""


@dataclass(slots=True)
class _Choice:
    """A choice that is being generated."""

    owner: RequestOutput
    output: CompletionOutput
    detokenizer: IncrementalDetokenizer
    stops: StopMatcher
    repetition: RepetitionDetector | None = None
    min_tokens: int = 0

    def take(self, delta: TokenDelta) -> bool:
        """Append a delta. Returns whether the choice ended for a reason that the engine does not know: a stop
        string, or a repetition.
        """
        self.owner.num_cached_tokens = max(self.owner.num_cached_tokens, delta.num_cached_tokens)
        self.output.token_ids += delta.token_ids
        if delta.prompt_logprobs is not None:
            self.owner.prompt_logprobs = delta.prompt_logprobs
        if delta.embedding:
            self.owner.embedding = np.frombuffer(delta.embedding, "<f4")
        if delta.logprobs:
            self.output.logprobs = (self.output.logprobs or []) + delta.logprobs
        ends = delta.finish_reason == "stop"
        text, matched = self.stops.push(self.detokenizer.push(delta.token_ids[:-1] if ends else delta.token_ids))
        self.output.text += text
        if matched is not None:
            self.output.finish_reason, self.output.stop_reason = "stop", matched
            return delta.finish_reason is None
        repeats = False
        if self.repetition is not None:
            for token in delta.token_ids:
                repeats = self.repetition.push(token)
        if delta.finish_reason is not None:
            self._finish(delta)
        elif repeats and len(self.output.token_ids) > self.min_tokens:
            self._finish(delta)
            self.output.finish_reason, self.output.stop_reason = "repetition", "repetition_detected"
            return True
        return False

    def _finish(self, delta: TokenDelta) -> None:
        text, matched = self.stops.push(self.detokenizer.finish())
        self.output.text += text + (self.stops.flush() if matched is None else "")
        self.output.finish_reason = "stop" if matched is not None else delta.finish_reason
        self.output.stop_reason = matched if matched is not None else delta.stop_reason
        self.output.error = delta.error


class LLM:
    """A model, loaded and compiled, that generates for a list of prompts at once.

    Keyword arguments are those of `EngineConfig` (the server's flags with underscores). Raises StartupError
    with a message for the user where the model cannot be loaded.
    """

    def __init__(
        self, model: str, *, chat_template: str | None = None, wait_for_compile: bool = False, **options: Any
    ) -> None:
        self._config = EngineConfig(model=str(model), **options)
        choose_platform(self._config.gpu_memory_utilization, stored_programs(self._config))
        bars = StartupBars()
        started = start_runner(self._config, bars.show)
        if wait_for_compile:
            table = started.runner.table
            programs = table.optional()
            for done, program in enumerate(programs, 1):
                table.add(program)
                bars.show("background-compile", done, len(programs), program.name)
        bars.close()
        self.started = started
        self.core = make_core(
            started,
            enable_prefix_caching=self._config.enable_prefix_caching,
            speculation=self._config.speculative_config,
        )
        self.tokenizer = load_tokenizer(model)
        self.chat_template = ChatTemplate.load(self.tokenizer, override=chat_template)
        self._numbers = itertools.count()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete every prompt (text, or token ids); outputs in the order of the prompts.

        One SamplingParams for all, or one for each. Raises RequestError for a prompt that cannot run, and of a model
        for embeddings for any.
        """
        if not self.started.generates:
            raise RequestError("this model embeds or gives labels; it does not generate text: call `embed`")
        listed = _as_list(prompts)
        params = sampling_params if sampling_params is not None else SamplingParams()
        each = [params] * len(listed) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise RequestError(f"{len(listed)} prompts came with {len(each)} sampling params; give one for each")
        choices: dict[str, _Choice] = {}
        outputs = [self._add(prompt, chosen, choices) for prompt, chosen in zip(listed, each, strict=True)]
        self._run(choices, use_tqdm)
        return outputs

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        **template_arguments: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them, through the model's chat template."""
        is_one = bool(messages) and isinstance(messages[0], dict)
        conversations: list[Any] = [messages] if is_one else list(messages)
        prompts: list[Prompt] = []
        for conversation in conversations:
            text = self.chat_template.render(list(conversation), **template_arguments)
            prompts.append(self.tokenizer.encode(text, add_special_tokens=False))
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Literal["last", "mean", "cls"] | None = None,
        use_tqdm: bool = True,
    ) -> list[np.ndarray]:
        """The embedding of every prompt, f32[E] of length 1: the final hidden state of its last token, the mean, or
        that of its first; by default what a model for embeddings says, or else the last.

        Raises RequestError for a prompt that cannot run, EngineFailedError where the model computes NaN or infinity.
        Texts are taken as they are: the prompts that a model comes with are in `started.embedder`.
        """
        if self.started.classifier is not None:
            raise RequestError("this model gives labels and makes no embeddings: serve it, and send texts to /classify")
        embedder = self.started.embedder
        chosen: Pooling = pooling or ("last" if embedder is None else embedder.pooling)
        choices: dict[str, _Choice] = {}
        params = SamplingParams(max_tokens=0)
        outputs = [self._add(prompt, params, choices, chosen) for prompt in _as_list(prompts)]
        self._run(choices, use_tqdm)
        for output in outputs:
            if output.outputs[0].error is not None:
                raise EngineFailedError(output.outputs[0].error)
        return [output.embedding for output in outputs if output.embedding is not None]

    def _add(
        self, prompt: Prompt, params: SamplingParams, choices: dict[str, _Choice], pooling: Pooling = ""
    ) -> RequestOutput:
        text = prompt if isinstance(prompt, str) else None
        tokens = self.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else list(prompt)
        vocab = self.core.shape.vocab_size
        check_prompt_tokens(tokens, vocab, self.tokenizer)
        check_named_tokens(params, vocab, self.tokenizer)
        if is_empty(fixed_tokens(params, vocab), vocab):
            raise RequestError("bad_words forbids every token of allowed_token_ids; relax one of them")
        _check_counts(params)
        number = next(self._numbers)
        owner = RequestOutput(str(number), text, tokens, [])
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        for index in range(params.n):
            output = CompletionOutput(index)
            owner.outputs.append(output)
            own = msgspec.structs.replace(params, seed=seed + index)
            request = Request(f"{number}-{index}", tokens, own, pooling=pooling)
            refused = self.core.add(request)
            if refused is not None:
                self.core.abort(list(choices))
                raise RequestError(refused.error or "the request cannot run")
            detokenizer = IncrementalDetokenizer(self.tokenizer, params.skip_special_tokens, before=request.token_ids)
            stops = StopMatcher(params.stop, params.include_stop_str_in_output)
            limits = params.repetition_detection
            repetition = RepetitionDetector(limits) if limits is not None else None
            choices[request.request_id] = _Choice(owner, output, detokenizer, stops, repetition, params.min_tokens)
        return owner

    def _run(self, choices: dict[str, _Choice], use_tqdm: bool) -> None:
        tokens = 0
        with tqdm(total=len(choices), desc="Generating", disable=not use_tqdm, dynamic_ncols=True) as bar:
            try:
                while not self.core.is_idle:
                    for delta in self.core.step():
                        choice = choices[delta.request_id]
                        tokens += len(delta.token_ids)
                        if choice.take(delta):
                            self.core.abort([delta.request_id])
                        if choice.output.finish_reason is not None:
                            bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
                            bar.update()
            except BaseException:
                self.core.abort(list(choices))
                raise


def _check_counts(params: SamplingParams) -> None:
    for name, count in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
        if count is not None and not 0 <= count <= MAX_LOGPROBS:
            raise RequestError(f"{name} is {count} but must be between 0 and {MAX_LOGPROBS}", param=name)
    if len(params.logprob_token_ids) > MAX_CHOSEN:
        raise RequestError(
            f"logprob_token_ids holds {len(params.logprob_token_ids)} tokens but at most {MAX_CHOSEN} are allowed",
            param="logprob_token_ids",
        )


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    is_one = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
    return [prompts] if is_one else list(prompts)  # type: ignore[list-item, arg-type]
