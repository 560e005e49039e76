"""One sequence on its way to the client: token ids in, text out, stop strings cut off."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from jserve.api.generation.packed_logprobs import PackedLogprobs
from jserve.protocol import SamplingParams, TokenDelta, TokenLogprobs
from jserve.text.output.pieces import OutputParser, ToolCallDelta, joined
from jserve.text.output.stop import StopMatcher
from jserve.text.tokenizers.detokenizer import IncrementalDetokenizer
from jserve.text.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jserve.text.output.repetition import RepetitionDetector


class ChoiceUpdate(msgspec.Struct, gc=False):
    """What one delta adds to a choice. `finish_reason` is set on the last.

    `text` is content; reasoning and tool calls are apart where the choice has a parser.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    prompt_logprobs: PackedLogprobs | None = None
    """Logprobs of the prompt's second to last token. They come with a choice's first update, where they are wanted."""
    embedding: bytes = b""
    """f32[E]; see `TokenDelta`."""

    @property
    def is_bare_text(self) -> bool:
        """Whether it adds text, or nothing, and says nothing else."""
        return self.finish_reason is None and self.logprobs is None and not self.reasoning and not self.tool_calls


class Choice:
    """Turns the deltas of one sequence into text.

    Text that may still become a stop string, and bytes that may still become a character, are held back.
    A stop string or a repetition ends the choice here, in the API process; the engine is told by the caller.
    """

    __slots__ = (
        "_detokenizer", "_is_plain", "_matcher", "_parser", "_repetition", "_sampling", "_scores", "finish_reason",
        "has_calls", "index", "num_reasoning", "num_tokens",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        parser: OutputParser | None = None,
        prompt: Sequence[int] = (),
    ) -> None:
        self.index = index
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.num_reasoning = 0
        """Tokens before the end of the reasoning."""
        self.has_calls = False
        self._sampling = sampling
        self._parser = parser
        self._scores: PackedLogprobs | None = None
        self._detokenizer = IncrementalDetokenizer(
            tokenizer,
            sampling.skip_special_tokens,
            continues=True,
            visible=parser.visible_tokens if parser is not None else frozenset(),
            before=prompt,
        )
        self._matcher: StopMatcher | None = None
        if sampling.stop:
            self._matcher = StopMatcher(sampling.stop, sampling.include_stop_str_in_output)
        self._repetition: RepetitionDetector | None = None
        if sampling.repetition_detection is not None:
            # With numpy, 0.15 s that a start is spared.
            from jserve.text.output.repetition import RepetitionDetector as Detector

            self._repetition = Detector(sampling.repetition_detection)
        self._is_plain = self._matcher is None and self._repetition is None and parser is None

    def gather(self, delta: TokenDelta) -> bool:
        """Whether `delta` is a piece of the prompt's logprobs and no more. It is kept until the first token comes."""
        if delta.prompt_logprobs is None or delta.token_ids or delta.finish_reason is not None:
            return False
        if self._scores is None:
            self._scores = PackedLogprobs()
        self._scores.extend(delta.prompt_logprobs)
        return True

    def accept(self, delta: TokenDelta) -> ChoiceUpdate:
        """The update that `delta` amounts to."""
        if self._is_plain and delta.finish_reason is None:
            token_ids = delta.token_ids
            self.num_tokens += len(token_ids)
            text = self._detokenizer.push(token_ids)
            return ChoiceUpdate(
                self.index, text, token_ids, delta.logprobs,
                prompt_logprobs=None if delta.prompt_logprobs is None else self._scores_with(delta),
                embedding=delta.embedding,
            )  # fmt: skip
        if self._matcher is None and self._repetition is None:
            self.num_tokens += len(delta.token_ids)
            visible = self._visible(delta.token_ids, delta)
            if self._parser is None:
                texts = [self._detokenizer.push(visible)]
            else:
                texts = [self._detokenizer.push([token]) for token in visible]
            if delta.finish_reason is not None:
                texts.append(self._detokenizer.finish())
            return self._update(texts, delta.token_ids, delta, delta.finish_reason, delta.stop_reason)
        return self._accept_matching(delta, self._matcher, self._repetition)

    def _accept_matching(
        self, delta: TokenDelta, matcher: StopMatcher | None, repetition: "RepetitionDetector | None"
    ) -> ChoiceUpdate:
        """Token by token, so that what follows the end in one delta is neither shown nor counted."""
        texts: list[str] = []  # of each token, and of what is shown at the end
        last = len(delta.token_ids) - 1
        for position, token in enumerate(delta.token_ids):
            self.num_tokens += 1
            is_end = position == last and delta.finish_reason is not None
            piece = self._detokenizer.push(self._visible([token], delta) if is_end else [token])
            if is_end:
                piece += self._detokenizer.finish()
            is_over = repetition is not None and repetition.push(token)
            if self.num_tokens <= self._sampling.min_tokens:
                texts.append(piece)
                continue
            seen = delta.token_ids[: position + 1]
            if matcher is not None:
                piece, matched = matcher.push(piece)
                if matched is not None:
                    return self._update([*texts, piece], seen, delta, "stop", matched)
            texts.append(piece)
            if is_over and not is_end:
                rest = self._detokenizer.finish()
                if matcher is not None:
                    piece, matched = matcher.push(rest)
                    rest = piece + matcher.flush()
                return self._update([*texts, rest], seen, delta, "repetition", "repetition_detected")
        if delta.finish_reason is not None and matcher is not None:
            texts.append(matcher.flush())
        return self._update(texts, delta.token_ids, delta, delta.finish_reason, delta.stop_reason)

    def _scores_with(self, delta: TokenDelta) -> PackedLogprobs | None:
        """All the prompt's logprobs, with their last piece, which came with the first token."""
        if delta.prompt_logprobs is None:
            return None
        scores, self._scores = self._scores or PackedLogprobs(), None
        scores.extend(delta.prompt_logprobs)
        return scores

    def _visible(self, token_ids: list[int], delta: TokenDelta) -> list[int]:
        """Without the token that stopped the sequence, unless the request wants to see it."""
        is_stopped = delta.finish_reason == "stop"
        return token_ids[:-1] if is_stopped and not self._sampling.include_stop_str_in_output else token_ids

    def _update(
        self,
        texts: list[str],
        token_ids: list[int],
        delta: TokenDelta,
        finish_reason: str | None,
        stop_reason: int | str | None,
    ) -> ChoiceUpdate:
        logprobs = delta.logprobs[: len(token_ids)] if delta.logprobs is not None else None
        update = ChoiceUpdate(
            self.index,
            "".join(texts),
            token_ids,
            logprobs,
            finish_reason,
            stop_reason,
            prompt_logprobs=self._scores_with(delta),
            embedding=delta.embedding,
        )
        if self._parser is not None:
            self._parse(update, texts, self._parser)
        self.finish_reason = update.finish_reason
        return update

    def _parse(self, update: ChoiceUpdate, texts: list[str], parser: OutputParser) -> None:
        """Take content, reasoning and tool calls apart. The token that ends the reasoning is not part of it."""
        pieces = []
        for position, text in enumerate(texts):
            if text:
                pieces.append(parser.push(text))
            self.num_reasoning += parser.is_reasoning and position < len(update.token_ids)
        if update.finish_reason is not None:
            is_cut = update.finish_reason != "stop" or isinstance(update.stop_reason, str)
            pieces.append(parser.finish(is_cut=is_cut))
            update.finish_reason = parser.finish_reason(update.finish_reason)
        piece = joined(pieces)
        update.text, update.reasoning, update.tool_calls = piece.content, piece.reasoning, piece.tool_calls
        self.has_calls = self.has_calls or bool(piece.tool_calls)
