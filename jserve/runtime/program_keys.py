"""The keys of programs: what each of an engine's programs is looked up and stored by. As text they are for display."""

from collections.abc import Hashable
from dataclasses import dataclass

from jserve.runtime.encoder_step import EncodeBucket
from jserve.runtime.sampling import Variant
from jserve.runtime.shapes import Bucket

ProgramKey = Hashable
"""One of the classes below."""


@dataclass(frozen=True, slots=True)
class Step:
    """A decoder's step."""

    bucket: Bucket

    def __str__(self) -> str:
        return f"step {self.bucket}"


@dataclass(frozen=True, slots=True)
class Encode:
    """An encoder's step."""

    bucket: EncodeBucket

    def __str__(self) -> str:
        return str(self.bucket)


@dataclass(frozen=True, slots=True)
class Sample:
    """The sampler of all rows of a step."""

    rows: int
    variant: Variant

    def __str__(self) -> str:
        return f"sample {self.rows} {self.variant}"


@dataclass(frozen=True, slots=True)
class SampleFew:
    """The sampler of a few rows out of so many."""

    rows: int

    def __str__(self) -> str:
        return f"few sample {self.rows}"


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Logprobs of the sampled tokens of all rows."""

    rows: int

    def __str__(self) -> str:
        return f"logprobs {self.rows}"


@dataclass(frozen=True, slots=True)
class LogprobsOfFew:
    """Logprobs of the sampled tokens of a few rows out of so many."""

    rows: int

    def __str__(self) -> str:
        return f"few logprobs {self.rows}"


@dataclass(frozen=True, slots=True)
class ChosenLogprobs:
    """Logprobs of the tokens that requests name."""

    rows: int

    def __str__(self) -> str:
        return f"chosen logprobs {self.rows}"


@dataclass(frozen=True, slots=True)
class Score:
    """Logprobs of a prompt's own tokens, in a step of so many tokens."""

    tokens: int

    def __str__(self) -> str:
        return f"score {self.tokens}"


@dataclass(frozen=True, slots=True)
class Pool:
    """Sums of a prompt's hidden states, in a step of so many tokens."""

    tokens: int

    def __str__(self) -> str:
        return f"pool {self.tokens}"


@dataclass(frozen=True, slots=True)
class InstallPages:
    """Entries of the page tables that a step has no room for."""

    def __str__(self) -> str:
        return "install pages"


@dataclass(frozen=True, slots=True)
class CopyStates:
    """States of sequences to snapshots, and back."""

    def __str__(self) -> str:
        return "copy states"


@dataclass(frozen=True, slots=True)
class InstallSampling:
    """A slot's sampling state."""

    def __str__(self) -> str:
        return "install sampling"


@dataclass(frozen=True, slots=True)
class InstallBias:
    """A slot's bias alone."""

    def __str__(self) -> str:
        return "install bias"


@dataclass(frozen=True, slots=True)
class EmptyState:
    """Pages and page tables with nothing in them."""

    def __str__(self) -> str:
        return "empty state"
