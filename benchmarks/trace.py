"""A trace as recordings of real services look: bursts, heavy tails, shared system prompts, conversations.

No recording is redistributed here; the shapes are those that were published:

* lengths: inputs as a log-normal body with a Pareto tail, outputs exponential (ServeGen, arXiv:2505.09999,
  section 3). Scale 1 means user turns of 90 tokens in the median, answers of 211 in the mean and prompts, with
  system prompt and history, of some hundreds to thousands: the conversation trace of Azure's LLM inference
  dataset 2023 (Splitwise, ISCA 2024) has a median prompt of 1,020 tokens and a mean answer of 211;
* arrivals: Gamma gaps with a coefficient of variation above 1 (BurstGPT, arXiv:2401.17644; ServeGen), and on top
  phases of calm and storm;
* prefixes: a few system prompts whose popularity falls as Zipf's law, and conversations that send all that was
  said again: half of them one turn, the others 3.5 in the mean (ServeGen, multi-turn conversations).

Everything follows from the seed. `TraceSpec.rate` compresses the whole recording, gaps within conversations too;
`length_scale` and `max_total` make it fit a small model on a small machine.
"""

import dataclasses
import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from jserve.commands.bench.prompts import WORDS_FILE, random_text

USER_MEDIAN, USER_SIGMA = 90.0, 1.0
TAIL_SHARE, TAIL_START, TAIL_ALPHA = 0.06, 500.0, 1.5
OUTPUT_MEAN = 211.0
SYSTEM_MEDIAN, SYSTEM_SIGMA = 700.0, 0.35
SINGLE_SHARE, MORE_TURNS_MEAN = 0.5, 3.5
MEAN_TURNS = SINGLE_SHARE + (1 - SINGLE_SHARE) * MORE_TURNS_MEAN
THINK_MEDIAN, THINK_SIGMA = 8.0, 0.8
"""Between the turns of a conversation, in mean gaps between requests."""
STORM_FACTOR, CALM_MEAN, STORM_MEAN = 4.0, 12.0, 4.0
"""How much denser storms are, and how long phases last in mean gaps between requests."""
TEMPLATE_TOKENS = 16
"""What a chat template may add to a turn; only for keeping within `max_total`."""


@dataclass(frozen=True, slots=True)
class TraceSpec:
    """What to make. Lengths are tokens."""

    requests: int
    rate: float
    """Requests a second, in the mean over the whole trace."""
    length_scale: float = 1.0
    max_total: int = 2048
    """Most tokens of a prompt and its answer."""
    system_prompts: int = 6
    zipf: float = 1.0
    gap_cv: float = 2.0
    """Coefficient of variation of the gaps between conversations within a phase."""

    def __post_init__(self) -> None:
        if self.requests < 1 or self.rate <= 0 or self.length_scale <= 0 or self.gap_cv <= 0:
            raise ValueError("requests, rate, length scale and the variation of gaps must be above 0")
        if self.system_prompts < 1:
            raise ValueError(f"system_prompts is {self.system_prompts} but must be at least 1")
        if self.max_total < 64:
            raise ValueError(f"max_total is {self.max_total} but must be at least 64 tokens")


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request of the recording; what it says is made by `TraceText`."""

    at: float
    """Seconds since the start."""
    conversation: int
    turn: int
    """0 for the first; later ones send all earlier ones, with their answers, again."""
    system: int
    """Which system prompt, by falling popularity."""
    system_len: int
    history_len: int
    """Tokens of the earlier turns and their answers."""
    input_len: int
    output_len: int


def make_trace(spec: TraceSpec, seed: str) -> list[TracedRequest]:
    """The requests in the order of their times, the last one at `requests / rate` seconds."""
    rng = random.Random(f"trace {seed}")
    systems = [
        clipped(rng.lognormvariate(0, SYSTEM_SIGMA) * SYSTEM_MEDIAN * spec.length_scale, 16, spec.max_total // 2)
        for _ in range(spec.system_prompts)
    ]
    weights = [1 / rank**spec.zipf for rank in range(1, spec.system_prompts + 1)]
    requests: list[TracedRequest] = []
    for index, start in enumerate(conversation_starts(spec, rng)):
        # All turns of the conversations that follow come after its start: the first `requests` are settled.
        if sum(request.at <= start for request in requests) >= spec.requests:
            break
        (system,) = rng.choices(range(spec.system_prompts), weights)
        requests += conversation(spec, rng, index, start, system, systems[system])
    requests.sort(key=lambda request: request.at)
    kept = requests[: spec.requests]
    first, last = kept[0].at, kept[-1].at
    scale = spec.requests / spec.rate / max(last - first, 1e-9)
    return [dataclasses.replace(request, at=(request.at - first) * scale) for request in kept]


def conversation_starts(spec: TraceSpec, rng: random.Random) -> Iterator[float]:
    """When conversations start, without end, in mean gaps between requests."""
    shape = 1 / spec.gap_cv**2
    # The mean gap in a calm, so that calm and storm together give one request a unit of time.
    calm_gap = MEAN_TURNS * (CALM_MEAN + STORM_FACTOR * STORM_MEAN) / (CALM_MEAN + STORM_MEAN)
    now, stormy = 0.0, False
    phase_end = rng.expovariate(1 / CALM_MEAN)
    while True:
        mean = calm_gap / STORM_FACTOR if stormy else calm_gap
        now += rng.gammavariate(shape, mean / shape)
        while now >= phase_end:
            stormy = not stormy
            phase_end += rng.expovariate(1 / (STORM_MEAN if stormy else CALM_MEAN))
        yield now


def conversation(
    spec: TraceSpec, rng: random.Random, index: int, start: float, system: int, system_len: int
) -> Iterator[TracedRequest]:
    """The turns of one conversation, as many as fit `max_total`."""
    turns = 1
    if rng.random() >= SINGLE_SHARE:
        turns = 2
        while rng.random() >= 1 / (MORE_TURNS_MEAN - 1):
            turns += 1
    at, history = start, 0
    for turn in range(turns):
        room = spec.max_total - system_len - history - (turn + 2) * TEMPLATE_TOKENS
        if room < 32:
            return
        wanted = spec.length_scale * user_length(rng)
        input_len = clipped(wanted, 1, room // 2)
        output_len = clipped(spec.length_scale * rng.expovariate(1 / OUTPUT_MEAN), 4, room - input_len)
        yield TracedRequest(at, index, turn, system, system_len, history, input_len, output_len)
        history += input_len + output_len
        at += THINK_MEDIAN * rng.lognormvariate(0, THINK_SIGMA)


def user_length(rng: random.Random) -> float:
    """Tokens of a user's turn at scale 1."""
    if rng.random() < TAIL_SHARE:
        return TAIL_START * rng.paretovariate(TAIL_ALPHA)
    return USER_MEDIAN * rng.lognormvariate(0, USER_SIGMA)


def clipped(value: float, least: int, most: int) -> int:
    """`value` as a whole number from `least` to `most`."""
    return min(max(round(value), least), most)


class TraceText:
    """The words of a trace. Two texts of other seeds share no prefix, so no server has seen them."""

    def __init__(self, seed: str, tokenizer: Tokenizer | None = None) -> None:
        self._seed = seed
        self.words = WORDS_FILE.read_text().split()
        self._tokenizer = tokenizer

    def system(self, request: TracedRequest) -> str:
        """The system prompt of a request."""
        return self._text(f"system {request.system}", request.system_len)

    def user(self, request: TracedRequest) -> str:
        """What the user says in a turn."""
        return self._text(f"turn {request.conversation} {request.turn}", request.input_len)

    def _text(self, name: str, length: int) -> str:
        return random_text(length, self.words, random.Random(f"{self._seed} {name}"), self._tokenizer)


def shareable_share(trace: Sequence[TracedRequest]) -> float:
    """Share of all prompt tokens that some earlier request of the trace sent or was answered: no cache can hit more."""
    seen: set[int] = set()
    shared = total = 0
    for request in trace:
        system_len = request.system_len if request.system in seen else 0
        shared += system_len + request.history_len
        total += request.system_len + request.history_len + request.input_len
        seen.add(request.system)
    return shared / total


def describe(trace: Sequence[TracedRequest]) -> dict[str, float]:
    """The trace in figures, for a report: what the spec wants and what came out of it."""
    prompts = sorted(r.system_len + r.history_len + r.input_len for r in trace)
    outputs = sorted(r.output_len for r in trace)
    gaps = [later.at - earlier.at for earlier, later in itertools.pairwise(trace)]
    spread = statistics.pstdev(gaps) / statistics.fmean(gaps) if len(gaps) > 1 and any(gaps) else 0.0
    return {
        "requests": len(trace),
        "conversations": len({request.conversation for request in trace}),
        "seconds": trace[-1].at,
        "gap_cv": spread,
        "prompt_p50": prompts[len(prompts) // 2],
        "prompt_p99": prompts[len(prompts) * 99 // 100],
        "output_mean": statistics.fmean(outputs),
        "output_p99": outputs[len(outputs) * 99 // 100],
        "follow_ups": sum(request.turn > 0 for request in trace) / len(trace),
        "shareable": shareable_share(trace),
    }
