"""The fixed shapes of a serving engine: slots, pages, and the buckets that steps run in."""

from dataclasses import dataclass

from jserve.schedule.groups import Windows, pages_held

CPU_STEP_OVERHEAD = 36
"""Tokens whose products take as long as what each step does for its own sake: reading weights, small operations."""
GPU_STEP_OVERHEAD = 256
"""Likewise: up to about so many, a step reads weights for longer than it computes (300 operations a byte)."""
FEW_STREAMS = 8
"""Rows of the decode step that a server on a CPU has from the first request on, beside the smallest."""
_FEW_ROWS = 32
"""Tokens a row up to which a mixed step comes with fewer rows than the most."""


@dataclass(frozen=True, slots=True, order=True)
class Bucket:
    """Padded shape of one step. With as many tokens as rows it serves decode steps alone."""

    tokens: int
    rows: int

    @property
    def is_decode(self) -> bool:
        return self.tokens == self.rows

    def __str__(self) -> str:
        return f"decode {self.rows}" if self.is_decode else f"mixed {self.tokens}x{self.rows}"


@dataclass(frozen=True, slots=True)
class EngineShape:
    """Sizes that are decided once, at start, and that every executable is compiled for."""

    max_num_seqs: int
    """R, slots."""
    max_num_batched_tokens: int
    max_model_len: int
    page_size: int
    """B"""
    num_pages: int
    """N"""
    vocab_size: int
    """V"""
    min_rows: int = 1
    """Rows of the smallest step. Engines have 2: the bfloat16 product of a single row is many times slower on a
    CPU, and on a GPU it is another program, of 5 more launches a layer (and of one that writes an array of a
    weight's size where 8 GPUs share the model). Compiled, not timed, on a GPU.
    """

    windows: Windows = (None,)
    """The windows of the cache groups, which all have N pages together; see `schedule.groups`."""
    num_snapshots: int | None = None
    """M, copies of the states of sequences; None where no layer keeps a state."""

    @property
    def num_states(self) -> int:
        """R + M, rows of a `SlotArray`."""
        return self.max_num_seqs + (self.num_snapshots or 0)

    @property
    def pages_per_sequence(self) -> int:
        """P"""
        return -(-self.max_model_len // self.page_size)

    def tokens_in(self, num_pages: int) -> int:
        """How many tokens so many pages hold, in sequences of the greatest length."""
        longest = self.pages_per_sequence
        return num_pages * longest * self.page_size // pages_held(longest, self.windows, self.page_size)

    @property
    def num_groups(self) -> int:
        """C"""
        return len(self.windows)

    def page_updates(self, bucket: Bucket) -> int:
        """U, how many new page-table entries a step of this bucket can carry."""
        return self.num_groups * (bucket.tokens // self.page_size + bucket.rows) + bucket.rows

    def first_decode_steps(self, *, on_cpu: bool) -> list[Bucket]:
        """Decode steps that a server begins with, the largest first. On a CPU those of one to eight streams.

        On a GPU all: each product of theirs is tried out when it is compiled, which takes memory that the KV cache has
        from then on, and the device from those who are served.
        """
        decode = sorted((bucket for bucket in self.buckets() if bucket.is_decode), reverse=True)
        return [bucket for bucket in decode if not on_cpu or bucket.rows == FEW_STREAMS or bucket == decode[-1]]

    def buckets(self) -> list[Bucket]:
        """All buckets, the ones that must exist before serving first: together those serve any plan."""
        most = max(self.max_num_seqs, self.min_rows)
        decode = [Bucket(count, count) for count in steps(self.min_rows, most, 2)]
        # Padding of tokens costs as much as tokens. That of rows costs their logits, which the more tokens there are
        # matters the less: fewer rows than the most are for small steps only.
        largest = max(self.max_num_batched_tokens, 2 * most)
        mixed = [
            Bucket(tokens, count)
            for tokens in steps(16, largest, 2)
            for count in steps(4, most, 4)
            if count < tokens and (count == most or tokens <= _FEW_ROWS * count)
        ]
        required = [mixed[-1], decode[-1], decode[0]]
        required = list(dict.fromkeys(required))
        return required + [bucket for bucket in decode + mixed if bucket not in required]


def steps(first: int, last: int, factor: int) -> list[int]:
    """first, first * factor, ... and always `last`."""
    sizes = []
    size = min(first, last)
    while size < last:
        sizes.append(size)
        size *= factor
    return [*sizes, last]
