"""Logprobs of many tokens in little memory, until the answer that they belong to is written."""

from array import array
from collections.abc import Iterable, Iterator

from jserve.protocol import TokenLogprobs


class PackedLogprobs:
    """A row of `TokenLogprobs` in five arrays: with 20 alternatives 260 bytes a token, where lists need 1,500."""

    __slots__ = ("_chosen", "_chosen_per_token", "_ends", "_own", "_ranks", "_top", "_top_ids")

    def __init__(self, positions: Iterable[TokenLogprobs] = ()) -> None:
        self._own = array("d")
        self._ranks = array("i")
        self._top_ids = array("i")
        self._top = array("d")
        self._ends = array("q")
        """Where the alternatives of each token end."""
        self._chosen = array("d")
        self._chosen_per_token = 0
        self.extend(positions)

    def __len__(self) -> int:
        return len(self._own)

    def __iter__(self) -> Iterator[TokenLogprobs]:
        begin, width = 0, self._chosen_per_token
        for at, end in enumerate(self._ends):
            yield TokenLogprobs(
                self._own[at],
                self._ranks[at],
                self._top_ids[begin:end].tolist(),
                self._top[begin:end].tolist(),
                self._chosen[at * width : (at + 1) * width].tolist(),
            )
            begin = end

    def extend(self, positions: Iterable[TokenLogprobs]) -> None:
        """Add further tokens, each with as many `chosen_logprobs` as the others."""
        for position in positions:
            self._own.append(position.logprob)
            self._ranks.append(position.rank)
            self._top_ids.extend(position.top_ids)
            self._top.extend(position.top_logprobs)
            self._ends.append(len(self._top))
            self._chosen.extend(position.chosen_logprobs)
            self._chosen_per_token = len(position.chosen_logprobs)
