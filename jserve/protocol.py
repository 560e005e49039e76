"""What crosses the socket between the API process and the engine process, as frozen msgspec structs.

Imports neither jax nor anything else of jserve. Everything is `array_like`, so a frame is a few bytes per
token; fields are therefore only ever appended, never reordered.
"""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
Pooling = Literal["", "last", "mean", "cls"]

MAX_LOGPROBS = 20
"""Most alternatives per token that the device returns."""
MAX_CHOSEN = 128
"""Most `SamplingParams.logprob_token_ids`."""


class ThinkingBudget(msgspec.Struct, frozen=True, array_like=True):
    """At most `max_tokens` tokens of reasoning, after which the tokens `end` are forced.

    Reasoning begins with the token sequence `begin`, or with the output where `is_open` (the prompt ends
    inside it), and ends with `end`.
    """

    max_tokens: int
    begin: tuple[int, ...]
    end: tuple[int, ...]
    is_open: bool = False


class RepetitionDetection(msgspec.Struct, frozen=True, array_like=True):
    """The output ends where a pattern of so many tokens stands at its end `min_count` times in a row."""

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int = 2


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, array_like=True, omit_defaults=False):
    """How the tokens of one request are chosen and when it ends.

    `temperature` below 1e-5 is greedy. `top_k` 0 or -1, `top_p` 1 and `min_p` 0 switch that filter off.
    `logprobs` None returns none, 0 the sampled token's, n the n best as well. `max_tokens` None means up to
    the context's end. `stop` is matched in the API process on text; `stop_token_ids` in the engine.
    `seed` makes the tokens a function of the request alone, whatever shares its batch.

    `grammar` is a grammar in llguidance's words (`text/grammars/grammar.py` writes it), "" for none: the output is a
    sentence of it. `allowed_token_ids` empty allows all. No sequence of `bad_words` appears in the output.
    `prompt_logprobs` is for the prompt what `logprobs` is for the output. `logprob_token_ids` are tokens whose
    logprob is reported at every position, whatever was sampled. `max_tokens` 0 computes the prompt alone.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    grammar: str = ""
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    thinking_budget: ThinkingBudget | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    repetition_detection: RepetitionDetection | None = None
    """Watched where the text is made, like `stop`."""
    penalty_window: int | None = None
    """Penalties look at this many of the newest tokens, prompt and output alike, and at nothing before them. None:
    repetition looks at the whole prompt and output, frequency and presence at the whole output."""
    grammar_bytes: int = 0
    """Memory of the compiled `grammar`, where it was measured."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-5

    @property
    def edits_logits(self) -> bool:
        """Whether penalties, a bias, a ban or a mask change the logits before a token is chosen."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or bool(self.logit_bias)
            or self.min_tokens > 0
            or bool(self.allowed_token_ids)
            or bool(self.bad_words)
            or self.needs_masks
        )

    @property
    def needs_masks(self) -> bool:
        """Whether what may come next depends on what has come, so that the host makes a mask for each token."""
        return bool(self.grammar) or self.thinking_budget is not None or any(len(word) > 1 for word in self.bad_words)


class Request(msgspec.Struct, frozen=True, array_like=True, tag="request"):
    """One sequence to generate. `n` choices are n requests (the prefix cache makes the prompt cheap).

    `arrival` is `time.time()` at the API; `cache_salt` isolates the prefix cache; `priority`: lower is
    earlier. `tenant` is a number that stands for an API key: tenants get equal shares of each priority. With `pooling`
    nothing is generated: the answer is the embedding of the prompt, from its last or first token's final hidden state
    or the mean of all.
    """

    request_id: str
    token_ids: list[int]
    sampling: SamplingParams
    arrival: float = 0.0
    cache_salt: str = ""
    priority: int = 0
    pooling: Pooling = ""
    tenant: int = 0
    second_text: int = 0
    """Place of the first token of the second text of a pair; 0 where there is none, or the model does not care."""
    normalizes: bool = True
    """Whether the vector is brought to length 1. What a classifier says of a text is not."""

    @property
    def ends_with_prompt(self) -> bool:
        """Whether nothing is generated: it is done when its prompt has been computed."""
        return bool(self.pooling) or self.sampling.max_tokens == 0


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """Stop these requests and free what they hold. Unknown ids are ignored."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag="shutdown"):
    """Leave the loop and exit 0. The API sends it when it has drained."""


ToEngine = Request | Abort | Shutdown


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural-log probabilities under the unmodified logits. `rank` of the sampled token starts at 1.

    `top_ids` and `top_logprobs` hold the requested number of best tokens, best first.
    """

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]
    chosen_logprobs: list[float] = []
    """Those of `SamplingParams.logprob_token_ids`, in their order."""


class TokenDelta(msgspec.Struct, frozen=True, array_like=True):
    """New tokens of one request, in order; `finish_reason` is set on its last delta only.

    The token that ended the sequence (end of sequence, or one of `stop_token_ids`, which `stop_reason` then
    holds) is included in `token_ids`. `num_cached_tokens` is set on the first delta, else 0.
    `error` explains finish_reason "error"; with `is_refusal` the request is to blame: it would fail anywhere.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    error: str | None = None
    scheduled_at: float = 0.0
    """`time.time()` when the request first left the queue; 0 except on the first delta."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Those of the prompt's second to last token, with the first delta of a request that wants them. What is too much
    for one frame comes before it, in deltas without a token.
    """
    embedding: bytes = b""
    """f32[E], little-endian; of a request with pooling, whose only delta this is. A classifier's E is its labels."""
    is_refusal: bool = False


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """Gauges (now) and counters (since the engine started)."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages_used: int = 0
    num_pages: int = 0
    num_steps: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens_computed: int = 0
    step_tokens: int = 0
    """Tokens of the newest step."""
    padded_tokens: int = 0
    """Size of the bucket that the newest step ran in."""
    compiles_after_ready: int = 0
    last_step_at: float = 0.0
    """`time.time()` of the newest step; 0 before the first."""
    num_deferred: int = 0
    """Requests whose grammar is being compiled; not among `num_waiting`."""
    num_drafts: int = 0
    """Steps of a sequence with drafted tokens."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_per_position: list[int] = []
    """Accepted drafted tokens, by their place in the draft; empty where nothing is ever drafted."""


class StepFrame(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """The one frame that a step sends."""

    deltas: list[TokenDelta]
    stats: EngineStats


class EngineProgress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """How far the start is: `phase` is one of "weights", "compile", "background-compile"."""

    phase: str
    done: int
    total: int
    detail: str = ""


class ModelFacts(msgspec.Struct, frozen=True, array_like=True):
    """What a prompt is checked against: it belongs to the model as it is served, whichever engine runs it."""

    max_model_len: int
    """Tokens of the context."""
    vocab_size: int
    """Rows of the token table, and so tokens that the model can emit."""
    eos_token_ids: tuple[int, ...]
    """Ascending."""


class EngineReady(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The engine serves from now on. `startup_seconds` maps a phase to its duration."""

    model: ModelFacts
    max_num_seqs: int
    page_size: int
    num_pages: int
    device: str
    startup_seconds: dict[str, float]
    info: dict[str, str]
    """Fields of the cache and the engine for `vllm:cache_config_info` and logs."""


class EngineFatal(msgspec.Struct, frozen=True, array_like=True, tag="fatal"):
    """The last words of an engine that exits. `retry` is False where another start would fail alike."""

    message: str
    retry: bool


class ProgramCounts(msgspec.Struct, frozen=True, array_like=True):
    """How many of the engine's programs are there, could not be made, and are wanted in all."""

    ready: int
    failed: int
    total: int
    untuned: int = 0
    """Those that are there, but whose products the compiler could not try out; they may be slower."""

    @property
    def pending(self) -> int:
        """Those that are still to be compiled or loaded, behind what is served."""
        return self.total - self.ready - self.failed


class EngineCompiled(msgspec.Struct, frozen=True, array_like=True, tag="compiled"):
    """Programs that the engine has had since it last said so, each with "cold" (compiled) or "cache" (loaded)."""

    programs: list[tuple[str, str]]
    counts: ProgramCounts


FromEngine = StepFrame | EngineProgress | EngineReady | EngineCompiled | EngineFatal
