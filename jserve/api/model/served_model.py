"""The text side of the model that is served: names, tokenizer, chat template, default sampling.

Loaded in a thread while the engine loads its weights; needs the model's files only.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from jserve.api.model.defaults import SamplingDefaults
from jserve.api.model.files import ModelFiles
from jserve.api.model.lengths import check_prompt_length
from jserve.api.model.speech import ModelSpeech
from jserve.api.model.template_renderer import TemplateRenderer
from jserve.api.settings import ServerSettings
from jserve.checkpoint import (
    Classifier,
    Embedder,
    OllamaModel,
    find_ollama_model,
    is_ollama_name,
    kept_ollama_model,
    open_checkpoint,
    ranking_tokens,
)
from jserve.checkpoint.json_file import read_json
from jserve.config import EngineConfig
from jserve.errors import CheckpointError, ConfigError, RequestError
from jserve.protocol import ModelFacts
from jserve.text.load import load_tokenizer
from jserve.text.templates.chat_template import ChatTemplate
from jserve.text.templates.render_worker import RenderJob
from jserve.text.tokenizers.tokenizer import Tokenizer, TokenPair
from jserve.text.tools.template_probe import Probe
from jserve.version import __version__

logger = logging.getLogger(__name__)

_MAX_SPEECHES = 8
"""Chat templates whose formats are remembered: the model's own, and some that came with requests."""
_INLINE_CHARS = 4_096
"""Text up to here is tokenized on the event loop, in about a millisecond; a thread would cost more."""


class ServedModel:
    """Tokenizes and renders for one model. Raises StartupError from `load` where its files are unusable."""

    def __init__(
        self,
        names: Sequence[str],
        tokenizer: Tokenizer,
        template: ChatTemplate,
        defaults: SamplingDefaults,
        fingerprint: str,
        files: ModelFiles,
        settings: ServerSettings,
        ollama: OllamaModel | None = None,
        embedder: Embedder | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        self.names = tuple(names)
        self.tokenizer = tokenizer
        self.template = template
        self.renderer = TemplateRenderer(template.sources, template.special_tokens)
        self.defaults = defaults
        self.fingerprint = fingerprint
        self.files = files
        self.ollama = ollama
        self.embedder = embedder
        self.classifier = classifier
        self.ranking_tokens = ranking_tokens(files.config, source=settings.model)
        self.facts = ModelFacts(0, 0, ())
        """What the engine said of the model when it was ready; no request is admitted before."""
        self._settings = settings
        self._speeches: dict[str, ModelSpeech] = {}
        logger.info("recognised: %s", self._describe())

    @classmethod
    def load(cls, settings: ServerSettings, config: EngineConfig) -> "ServedModel":
        """Read what the text side needs. Blocking; run it in a thread."""
        is_pulled = is_ollama_name(settings.model)
        ollama = find_ollama_model(settings.model) if is_pulled else kept_ollama_model(Path(settings.model))
        if ollama is not None and (unused := ollama.describe_unused()):
            logger.warning("%s", unused)
        tokenizer = load_tokenizer(settings.model)
        template = ChatTemplate.load(tokenizer, _template_override(settings, ollama))
        defaults = _sampling_defaults(settings, ollama)
        logger.info("default sampling: %s", defaults.describe())
        has_weights = config.load_format != "dummy"
        files = ModelFiles.read(settings.model, has_weights=has_weights, architecture=config.architecture)
        model = cls(
            settings.model_names,
            tokenizer,
            template,
            defaults,
            fingerprint(config),
            files,
            settings,
            ollama,
            embedder=Embedder.of(files.config, source=settings.model),
            classifier=Classifier.of(files.config, source=settings.model),
        )
        _ = model.max_token_chars  # Walks the vocabulary, which would hold up the event loop later.
        return model

    def speech(self, template: str | None = None) -> ModelSpeech:
        """How the model thinks and calls tools, by `template` or else its own. Raises ConfigError."""
        key = template or ""
        if key not in self._speeches:
            while len(self._speeches) >= _MAX_SPEECHES:
                del self._speeches[next(reversed(self._speeches))]  # Never the first, which is the model's own.
            source = template or "\n".join(self.template.sources.values())
            self._speeches[key] = ModelSpeech.of(source, self.tokenizer, self._settings)
        return self._speeches[key]

    @property
    def name(self) -> str:
        """The name that responses carry."""
        return self.names[0]

    @property
    def has_template(self) -> bool:
        return bool(self.template.sources)

    @property
    def has_template_of_pairs(self) -> bool:
        """Whether its chat template puts a query and a document into words, as messages of these roles."""
        return any(
            all(f"{q}{role}{q}" in source for role in ("query", "document"))
            for source in self.template.sources.values()
            for q in "'\""
        )

    @property
    def generates(self) -> bool:
        """Whether it answers with text."""
        return self.embedder is None and self.classifier is None

    def _describe(self) -> str:
        if self.embedder is not None:
            return f"a model for embeddings, {self.embedder.pooling} pooling"
        if self.classifier is None:
            return self.speech().describe()
        labels = len(self.classifier.labels)
        return "a cross-encoder, which scores pairs of texts" if labels == 1 else f"a classifier with {labels} labels"

    def check_generates(self) -> None:
        """Raise RequestError where the model does something else."""
        if self.classifier is not None:
            raise RequestError(
                f'the model "{self.name}" gives labels; it does not generate text. Send texts to /classify, or pairs '
                "of them to /score or /rerank where it has one label",
                param="model",
            )
        if self.embedder is not None:
            raise RequestError(
                f'the model "{self.name}" embeds; it does not generate text. Send texts to v1/embeddings, or to '
                "api/embed as Ollama's clients do",
                param="model",
            )

    def with_presets(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """A conversation after what an Ollama manifest puts before it: SYSTEM, unless it has a system message of its
        own in front, and MESSAGE.
        """
        if self.ollama is None or not messages:
            return messages
        has_system = messages[0].get("role") in ("system", "developer") or not self.ollama.system
        system = [] if has_system else [{"role": "system", "content": self.ollama.system}]
        return [*system, *self.ollama.messages, *messages] if system or self.ollama.messages else messages

    @cached_property
    def blank_token(self) -> int:
        """The token that stands for an empty text where the tokenizer has none around it: beginning or end."""
        tokenizer = self.tokenizer
        named = [tokenizer.special_tokens.get(name) for name in ("bos_token", "cls_token", "eos_token", "pad_token")]
        ids = [token_id for token in named if token and (token_id := tokenizer.token_id(token)) is not None]
        return [*ids, 0][0]

    async def encode(self, text: str, *, add_special_tokens: bool, max_model_len: int) -> list[int]:
        """Token ids of `text`. Raises RequestError where it cannot fit, before tokenizing all of it."""
        if self.tokenizer.keeps_text:
            self._check_chars(len(text), max_model_len)
        elif len(text) > _INLINE_CHARS and await asyncio.to_thread(self._exceeds, text, max_model_len):
            check_prompt_length(max_model_len + 1, max_model_len, at_least=True)
        if len(text) <= _INLINE_CHARS:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def encode_pair(self, first: str, second: str, *, max_model_len: int) -> TokenPair:
        """Token ids of two texts as one. Raises RequestError where they cannot fit."""
        for text in (first, second):  # of a text that is too long, all tokens are not made to learn that
            await self.encode(text, add_special_tokens=False, max_model_len=max_model_len)
        if len(first) + len(second) <= _INLINE_CHARS:
            return self.tokenizer.encode_pair(first, second)
        return await asyncio.to_thread(self.tokenizer.encode_pair, first, second)

    async def beginning(self, text: str, max_model_len: int) -> str:
        """As much of `text` as may be needed to fill the context with tokens."""
        if self.tokenizer.keeps_text:
            return text[: max_model_len * self.max_token_chars]
        if len(text) <= _INLINE_CHARS:
            return text
        return await asyncio.to_thread(self.tokenizer.beginning, text, 2 * max_model_len)

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_model_len: int,
        add_generation_prompt: bool,
        continue_final_message: bool,
        variables: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
    ) -> str:
        """The prompt of a conversation, by `template` or else the model's.

        Raises RequestError where the template refuses it, or the messages are more than the context could hold.
        """
        if len(messages) > max_model_len:
            raise RequestError(
                f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
                f"{len(messages)} messages, which cannot fit. Please reduce the number of messages.",
                param="messages",
            )
        max_chars = max_model_len * self.max_token_chars

        async def render(probe: Probe) -> str:
            job = RenderJob(probe.messages, probe.tools, None, True, False, variables, template, max_chars)
            return (await self.renderer.render(job)).text

        messages, tools = await self.speech(template).prepare(messages, tools, render)
        self._check_chars(sum(map(_num_content_chars, messages)), max_model_len)
        job = RenderJob(
            messages, tools, documents, add_generation_prompt, continue_final_message, variables, template, max_chars
        )
        rendered = await self.renderer.render(job)
        self._check_chars(rendered.num_chars, max_model_len)
        return rendered.text

    def _exceeds(self, text: str, max_model_len: int) -> bool:
        """Whether a piece of the text has twice the tokens that all of it may have: pieces end within words."""
        return len(self.tokenizer.beginning(text, 2 * max_model_len)) < len(text)

    def _check_chars(self, num_chars: int, max_model_len: int) -> None:
        """Raise RequestError where this many characters are more tokens than the context holds, however they fall."""
        if num_chars > max_model_len * self.max_token_chars:
            check_prompt_length(-(-num_chars // self.max_token_chars), max_model_len, at_least=True)

    @cached_property
    def max_token_chars(self) -> int:
        """The longest token, in bytes, which is at least its characters."""
        return max(len(self.tokenizer.token_bytes(token)) for token in range(self.tokenizer.num_ids))


def _num_content_chars(message: Mapping[str, Any]) -> int:
    content = message.get("content")
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return sum(len(text) for text in texts if isinstance(text, str))


def fingerprint(config: EngineConfig) -> str:
    """`system_fingerprint`: changes with the version and with whatever may change the output."""
    config = msgspec.structs.replace(config, log_level="", log_format="")
    digest = hashlib.sha256(msgspec.json.encode(config)).hexdigest()[:8]
    parallel = f"-tp{config.tensor_parallel_size}" if config.tensor_parallel_size > 1 else ""
    return f"jserve-{__version__}{parallel}-{digest}"


def _template_override(settings: ServerSettings, ollama: OllamaModel | None) -> str | None:
    """`--chat-template ollama` is the Go template of the model's manifest."""
    if settings.chat_template != "ollama" or Path("ollama").exists():
        return settings.chat_template
    if ollama is None or not ollama.template:
        raise ConfigError("--chat-template ollama: the model has no manifest of Ollama with a template in it")
    return ollama.template


def _sampling_defaults(settings: ServerSettings, ollama: OllamaModel | None) -> SamplingDefaults:
    source = settings.generation_config
    if source == "vllm":
        return SamplingDefaults()
    if source == "auto":
        with closing(open_checkpoint(settings.model)) as checkpoint:
            source_file = checkpoint.path / "generation_config.json" if checkpoint.path.is_dir() else checkpoint.path
            of_file = SamplingDefaults.from_generation_config(checkpoint.generation_config(), source=source_file)
        if ollama is None:
            return of_file
        return SamplingDefaults.from_ollama(ollama.parameters, source=ollama.name).over(of_file)
    path = Path(source) / "generation_config.json"
    try:
        raw = read_json(path)
    except CheckpointError as error:
        raise ConfigError(f"--generation-config: {error}") from error
    return SamplingDefaults.from_generation_config(raw, source=path)
