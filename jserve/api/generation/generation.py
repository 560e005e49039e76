"""The one place where an API request becomes engine requests, and where their tokens come back as text.

An endpoint prepares prompts and sampling; `Generator.start` makes one engine request per choice and returns
a `Generation`, which both the streaming and the whole answer are made from.
"""

import asyncio
import itertools
import logging
import math
import secrets
import time
from array import array
from collections.abc import Callable

import msgspec
from msgspec import UNSET

from jserve.api.access.account import Account
from jserve.api.access.isolation import CacheIsolation
from jserve.api.call import Call, current_call
from jserve.api.errors import ClientGoneError
from jserve.api.generation.answer_size import check_answer_size
from jserve.api.generation.choice import Choice, ChoiceUpdate
from jserve.api.generation.request import GenerationRequest
from jserve.api.generation.usage import CompletionTokensDetails, PromptTokensDetails, RequestMetrics, Usage
from jserve.api.life import RequestLife
from jserve.api.model.lengths import clamp_max_tokens
from jserve.api.model.served_model import ServedModel
from jserve.api.supervisor.client import EngineClient
from jserve.api.supervisor.inbox import Inbox
from jserve.api.telemetry.metrics import Metrics
from jserve.errors import EngineFailedError, EngineUnavailableError, JserveError, RequestError
from jserve.protocol import Request, SamplingParams, TokenDelta
from jserve.text.tokenizers.token_rows import check_named_tokens, check_prompt_tokens

logger = logging.getLogger(__name__)

_GOLDEN = 0x9E3779B97F4A7C15
"""Odd and close to 2**64 over the golden ratio: consecutive multiples are far apart (Knuth, 6.4)."""

_LOGGED = (
    "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "repetition_penalty",
    "frequency_penalty", "presence_penalty", "ignore_eos", "logprobs", "prompt_logprobs",
)  # fmt: skip
"""Fields of a request that may be logged; others hold words."""


class Generation:
    """All choices of one HTTP request, as they grow."""

    def __init__(
        self,
        request: GenerationRequest,
        client: EngineClient,
        metrics: Metrics,
        inbox: Inbox,
        choices: dict[str, tuple[Choice, RequestLife]],
        account: Account | None = None,
    ) -> None:
        self.request = request
        self.num_choices = len(choices)
        self.num_prompt_tokens = sum(len(prompt.token_ids) for prompt in request.prompts)
        self._client = client
        self._metrics = metrics
        self._inbox = inbox
        self._running = choices
        self.lives = [life for _, life in choices.values()]
        """When things happened, by choice; an ended one has its counts too."""
        self._account = account
        self._num_output = 0
        self._num_cached = 0
        self._num_reasoning = 0

    @property
    def is_finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return not self._running

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener`, which must not raise, whenever `advance` has something to give or to raise."""
        self._inbox.listen(listener)

    def advance(self) -> list[ChoiceUpdate]:
        """What the tokens that have arrived add. Raises what ends the request early, once it is logged."""
        try:
            deltas = self._inbox.drain()
            now = self._client.received_at
            before = self._num_output
            updates = [update for delta in deltas if (update := self._accept(delta, now)) is not None]
            if self._account is not None:
                self._account.spend(self._num_output - before)
            return updates
        except ClientGoneError:
            self._abandon("abort", "client disconnected")
            raise
        except EngineUnavailableError:
            self._abandon("abort", "server shut down")
            raise
        except BaseException as error:
            self._abandon("error", str(error) or type(error).__name__)
            raise

    async def rest(self, collect: Callable[[list[ChoiceUpdate]], None]) -> None:
        """Pass all updates to `collect` as they come, until every choice has finished."""
        complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def take() -> None:
            if complete.done():
                return
            try:
                collect(self.advance())
            except BaseException as error:
                complete.set_exception(error)
            else:
                if self.is_finished:
                    complete.set_result(None)

        self.listen(take)
        take()
        await complete

    def cancel(self, error: JserveError) -> None:
        """End every open choice with `error`: the engine is told now, the reader when it next waits."""
        if self._running:
            self._client.abort(list(self._running))
            self._inbox.fail(error)

    def close(self) -> None:
        """Nothing more is wanted; what still runs is aborted."""
        if self._running:
            self._abandon("abort", "given up")

    def usage(self, *, with_details: bool = False) -> Usage:
        """Token counts so far."""
        prompt, output = self.num_prompt_tokens, self._num_output
        cached = PromptTokensDetails(self._num_cached) if with_details else UNSET
        thought = CompletionTokensDetails(self._num_reasoning) if self.request.counts_reasoning else UNSET
        return Usage(prompt, prompt + output, output, cached, thought)

    def request_metrics(self) -> RequestMetrics | None:
        """The times of the only choice, None where there are several."""
        return RequestMetrics.of(self.lives[0], self._num_output) if self.num_choices == 1 else None

    def _accept(self, delta: TokenDelta, now: float) -> ChoiceUpdate | None:
        entry = self._running.get(delta.request_id)
        if entry is None:
            return None
        if delta.finish_reason == "error":
            message = delta.error or "the engine could not finish this request"
            raise RequestError(message) if delta.is_refusal else EngineFailedError(message)
        if delta.logprobs or delta.prompt_logprobs or delta.embedding:
            _check_finite(delta)
        choice, life = entry
        if delta.prompt_logprobs is not None and choice.gather(delta):
            return None
        self._metrics.observe_delta(life, delta, now)
        before, thought = choice.num_tokens, choice.num_reasoning
        update = choice.accept(delta)
        self._num_output += choice.num_tokens - before
        self._num_reasoning += choice.num_reasoning - thought
        self._num_cached += delta.num_cached_tokens
        if update.finish_reason is not None:
            self._end(delta, choice, life)
        return update

    def _end(self, delta: TokenDelta, choice: Choice, life: RequestLife) -> None:
        del self._running[delta.request_id]
        if delta.finish_reason is None:
            self._client.abort([delta.request_id])
        life.end(choice.finish_reason or "stop", choice.num_tokens)
        self._metrics.observe_life(life)
        if (use := self.request.parser_use) is not None:
            outcome = "tool_call" if choice.has_calls else "no_tool_call"
            self._metrics.parser_uses[use.mode, outcome, use.request_type] += 1
        logger.info(
            "request %s finished: reason=%s %s", life.request_id, life.finish_reason, life.describe(),
            extra=life.fields(),
        )  # fmt: skip

    def _abandon(self, reason: str, why: str) -> None:
        self._client.abort(list(self._running))
        verb = "aborted" if reason == "abort" else "failed"
        for choice, life in self._running.values():
            life.end(reason, choice.num_tokens)
            self._metrics.observe_life(life)
            self._metrics.aborted[why if reason == "abort" else "failure"] += 1
            logger.info(
                "request %s %s: %s; %s", life.request_id, verb, why, life.describe(), extra=life.fields()
            )  # fmt: skip
        self._running = {}


class Generator:
    """Starts generations and knows those that are open, so that a shutdown can wait for them."""

    def __init__(
        self, client: EngineClient, metrics: Metrics, isolation: CacheIsolation, *, log_requests: bool = False
    ) -> None:
        self._log_requests = log_requests
        self._client = client
        self._metrics = metrics
        self._isolation = isolation
        self._open: set[Generation] = set()
        self._serial = itertools.count(1)
        self.is_draining = False
        self.last_active = time.monotonic()
        """When a request last came or was over, of `time.monotonic()`."""

    @property
    def num_open(self) -> int:
        """HTTP requests whose answer is not complete."""
        return len(self._open)

    def check_available(self) -> None:
        """Raise EngineUnavailableError where no request can be taken now."""
        if self.is_draining:
            raise EngineUnavailableError("the server is shutting down and takes no new requests")
        self._client.check_ready()

    def start(self, request: GenerationRequest, model: ServedModel, cap: int | None) -> Generation:
        """Hand the request's choices to the engine. `cap` bounds the output of every request of this model.

        The caller must `finish` the generation, whatever happens. Raises RequestError for a token that the model has
        no row for, too many logprobs, or a priority that the key of the current call has no right to; RateLimitError
        for that key; EngineUnavailableError, OverloadedError.
        """
        self.check_available()
        facts = model.facts
        check_answer_size(request, facts.max_model_len, cap)
        check_named_tokens(request.sampling, facts.vocab_size, model.tokenizer)
        for prompt in request.prompts:
            check_prompt_tokens(prompt.token_ids, facts.vocab_size, model.tokenizer)
        call = current_call()
        call.check_priority(request.priority)
        call.open_sequences(len(request.prompts) * request.sampling.n)
        requests, choices = self._engine_requests(request, model, cap, call)
        num_prompt = sum(len(prompt.token_ids) for prompt in request.prompts)
        inbox = self._submit(requests, num_prompt, call.account)
        self._metrics.choices.observe(request.sampling.n)
        call.prompts += [prompt.token_ids for prompt in request.prompts]
        call.num_prompt += num_prompt
        self._metrics.key_tokens[call.key.id, "prompt"] += num_prompt
        generation = Generation(request, self._client, self._metrics, inbox, choices, call.account)
        call.lives += generation.lives
        self._open.add(generation)
        self.last_active = time.monotonic()
        return generation

    def _submit(self, requests: list[Request], num_prompt: int, account: Account | None) -> Inbox:
        if account is None:
            return self._client.submit(requests)
        account.reserve(num_prompt)
        try:
            return self._client.submit(requests)
        except JserveError:
            account.spend(-num_prompt)
            raise

    def finish(self, generation: Generation) -> None:
        """Forget a generation; what is still open of it is aborted."""
        if generation in self._open:
            generation.close()
            self._open.discard(generation)
            self.last_active = time.monotonic()
            self._metrics.longest_size.observe(max(life.num_output for life in generation.lives))

    def cancel_all(self, error: JserveError) -> None:
        """End every open generation with `error`."""
        for generation in list(self._open):
            generation.cancel(error)

    def _engine_requests(
        self, request: GenerationRequest, model: ServedModel, cap: int | None, call: Call
    ) -> tuple[list[Request], dict[str, tuple[Choice, RequestLife]]]:
        n = request.sampling.n
        num_choices = len(request.prompts) * n
        # Never the same twice, even where a client retries under its own id: tokens of the request that it
        # gave up may still be on their way.
        ids = [f"{request.public_id}#{next(self._serial)}" for _ in range(num_choices)]
        arrived = time.time()
        salt = self._isolation.salt(call.key, request.cache_salt)
        requests, choices = [], {}
        for index, request_id in enumerate(ids):
            prepared = request.prompts[index // n]
            prompt = prepared.token_ids
            max_tokens = clamp_max_tokens(request.sampling.max_tokens, len(prompt), model.facts.max_model_len, cap)
            sampling = _choice_sampling(request.sampling, index % n, max_tokens)
            requests.append(
                Request(
                    request_id,
                    prompt,
                    sampling,
                    arrived,
                    salt,
                    max(request.priority, call.least_priority),
                    request.pooling,
                    tenant=call.key.tenant,
                    second_text=prepared.second_text,
                    normalizes=request.normalizes,
                )
            )
            # The engine has no use for stop strings and the like, the choice has none for the rest.
            parser = request.new_parser() if request.new_parser is not None else None
            choice = Choice(index, request.sampling, model.tokenizer, parser, prompt)
            life = RequestLife(request_id, len(prompt), max_tokens, arrived, key_id=call.key.id)
            choices[request_id] = (choice, life)
        if self._log_requests:
            logger.info("request %s received: %s", request.public_id, describe_sampling(request))
        return requests, choices


def _choice_sampling(sampling: SamplingParams, k: int, max_tokens: int) -> SamplingParams:
    return msgspec.structs.replace(
        sampling,
        n=1,
        stop=(),
        repetition_detection=None,
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_tokens, max_tokens),
        seed=choice_seed(sampling.seed, k),
    )


def _check_finite(delta: TokenDelta) -> None:
    """Raise EngineFailedError where a number that the client would read is NaN or infinite: JSON has none of them.

    A probability of zero is no such number: its logarithm is minus infinity, which is written as -9999.
    """
    positions = [*(delta.logprobs or ()), *(delta.prompt_logprobs or ())]
    is_nan = any(position.logprob != position.logprob for position in positions)
    if is_nan or (delta.embedding and not math.isfinite(sum(array("f", delta.embedding)))):
        raise EngineFailedError(
            "the model computed a number that is not finite (NaN or infinity), so it has no answer; its weights or the "
            "precision that it runs in (--dtype, --kv-cache-dtype) are at fault"
        )


def describe_sampling(request: GenerationRequest) -> str:
    """The sampling of a request, for the log: nothing in it tells the content."""
    defaults = SamplingParams()
    values = {name: getattr(request.sampling, name) for name in _LOGGED}
    changed = {name: value for name, value in values.items() if value != getattr(defaults, name)}
    num_prompt = sum(len(prompt.token_ids) for prompt in request.prompts)
    return " ".join(f"{name}={value}" for name, value in {"prompt_tokens": num_prompt, **changed}.items())


def choice_seed(seed: int | None, k: int) -> int:
    """The seed of the k-th choice, as int64: `seed` itself for the first choice, far from it for the others."""
    if seed is None:
        return secrets.randbits(63)
    mixed = (seed + k * _GOLDEN) % 2**64
    return mixed - 2**64 if mixed >= 2**63 else mixed
