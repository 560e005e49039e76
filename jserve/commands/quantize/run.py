"""The run of `jserve quantize`: from a model and a text to a folder, one decoder layer after the other."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jserve.checkpoint import Checkpoint, find_ollama_model, is_ollama_name, keep_ollama_model, open_checkpoint
from jserve.commands.corpus import cut
from jserve.commands.quantize.awq import Result, learn
from jserve.commands.quantize.folder import FolderWriter, write_json
from jserve.commands.quantize.folding import Array, fold_into_norm, fold_into_rows
from jserve.commands.quantize.gptq import compensate
from jserve.commands.quantize.layers import DecoderLayers, Seen
from jserve.commands.quantize.layers import Path as ModulePath
from jserve.commands.quantize.products import Group, Product, groups_of, products_of
from jserve.commands.quantize.rounding import Codes, output_error, round_asymmetric, symmetric_codes
from jserve.config import ModelConfig, QuantizeConfig
from jserve.errors import ConfigError
from jserve.models.registry import resolve, resolve_encoder
from jserve.quant import detect
from jserve.quant.written import Rounded, config_of, tensors_of
from jserve.text.load import load_tokenizer
from jserve.text.save import save_tokenizer
from jserve.weights.tied_head import with_trained_head

Progress = Callable[[int, int, str], None]
"""Called with (layers done, layers in all, what the last one came to)."""
GROUP_SIZES = (128, 64, 32, 16)
"""The largest that divides all inputs is taken where none is asked for."""
FOLDED = 1e-2
"""Largest change of a layer's outputs, relative, by scales that cancel: float32 sums in another order are far below,
a scale in the wrong place is far above.
"""


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of layers' outputs, |x W - x W'|^2 / |x W|^2 on the text: rounded to the nearest, and as written."""

    nearest: float
    written: float


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a model."""

    group_size: int
    tokens: int
    bytes: int
    layers: list[Errors]
    """The mean over each decoder layer's linear layers."""


def quantize(quantize_config: QuantizeConfig, text: str, folder: Path, progress: Progress) -> Done:
    """Write `folder`, learned on `text`. Raises StartupError where the model, the text or the sizes do not allow it."""
    with FolderWriter(folder) as out, closing(open_checkpoint(quantize_config.model)) as checkpoint:
        if resolve_encoder(checkpoint.config(), source=checkpoint.path) is not None:
            raise ConfigError(f"{quantize_config.model} is an encoder; jserve quantize supports decoders")
        family, config = resolve(checkpoint.config(), source=checkpoint.path)
        config = with_trained_head(config, checkpoint)
        _refuse(quantize_config.model, checkpoint, config)
        tokenizer = load_tokenizer(quantize_config.model)
        tokens = cut(text, tokenizer, quantize_config.samples, quantize_config.sequence_length)
        _check_tokens(tokens, config)
        layers = DecoderLayers(checkpoint, family, config, quantize_config.sequence_length)
        size = _group_size(quantize_config, layers)
        run = _Run(quantize_config, checkpoint, config, layers, size, out)
        errors = run.layers(tokens, progress)
        run.others()
        if checkpoint.format == "huggingface":
            out.copy_others(checkpoint.path)
        else:
            write_json(out.part / "generation_config.json", checkpoint.generation_config())
            save_tokenizer(tokenizer, out.part)
            if is_ollama_name(quantize_config.model):
                keep_ollama_model(find_ollama_model(quantize_config.model), out.part)
        stored = config_of(quantize_config.method, quantize_config.bits, size)
        written = out.finish({**checkpoint.config(), "quantization_config": stored})
    return Done(size, tokens.size, written, errors)


def _refuse(model: str, checkpoint: Checkpoint, config: ModelConfig) -> None:
    if checkpoint.format == "converted":
        raise ConfigError(f"{model} is what jserve convert wrote; quantize the model that it is made of")
    raw = checkpoint.config()
    if detect(raw, None, checkpoint.tensors(), source=checkpoint.path) is not None:
        raise ConfigError(f"{model} has quantized weights already; take the model's unquantized weights")
    if config.mixture is not None:
        raise ConfigError(f"{model} is a mixture of experts; jserve quantize supports dense models")
    if config.latent is not None:
        raise ConfigError(f"{model} keeps latents in its cache; jserve quantize supports models with keys and values")
    if isinstance(raw.get("text_config"), dict):
        raise ConfigError(f"{model} has parts that are no text model; jserve quantize supports text models")


def _check_tokens(tokens: np.ndarray, config: ModelConfig) -> None:
    if int(tokens.max()) >= config.vocab_size:
        raise ConfigError(
            f"the tokenizer makes token {int(tokens.max()):,} of the text but the model has {config.vocab_size:,}"
        )
    if tokens.shape[1] > config.max_position_embeddings:
        raise ConfigError(
            f"--sequence-length is {tokens.shape[1]:,} but the model is for {config.max_position_embeddings:,} tokens"
        )


def _group_size(quantize_config: QuantizeConfig, layers: DecoderLayers) -> int:
    """The size of groups. Raises ConfigError where weights are no whole groups, or no whole words of 32 bits."""
    products = [product for number in range(len(layers)) for product in products_of(layers, number)]
    fitting = [size for size in GROUP_SIZES if all(product.inputs % size == 0 for product in products)]
    size = quantize_config.group_size or (fitting[0] if fitting else GROUP_SIZES[-1])
    words = 32 // quantize_config.bits
    for product in products:
        name = next(iter(product.weights))
        if product.inputs % size or size % words:
            raise ConfigError(
                f"groups of {size} do not fit {name}, which has {product.inputs:,} inputs; "
                + (f"--group-size {' or '.join(map(str, fitting))} does" if fitting else "no size of groups does")
            )
        for tensor, rows in product.weights.items():
            if rows % words:
                raise ConfigError(f"{tensor} has {rows:,} outputs, which are no whole words of {words} codes")
    return size


class _Run:
    """One run, layer by layer."""

    def __init__(
        self,
        quantize_config: QuantizeConfig,
        checkpoint: Checkpoint,
        config: ModelConfig,
        layers: DecoderLayers,
        size: int,
        out: FolderWriter,
    ) -> None:
        self._asked, self._checkpoint, self._config = quantize_config, checkpoint, config
        self._layers, self._size, self._out = layers, size, out
        self._done: set[str] = set()

    def layers(self, tokens: np.ndarray, progress: Progress) -> list[Errors]:
        """Quantize every decoder layer, each on what those before leave when they are quantized."""
        x = self._layers.embed(tokens)
        errors = []
        for number in range(len(self._layers)):
            weights = self._layers.fill(number, {})
            seen = self._layers.observe(number, weights, x)
            products = products_of(self._layers, number)
            chosen = self._awq(number, products, seen, x) if self._asked.method == "awq" else _Chosen()
            if self._asked.method == "gptq":
                self._gptq(products, seen, chosen)
            floats = {**chosen.replaced, **self._write(products, chosen)}
            x = self._layers.advance(number, self._layers.fill(number, floats), x)
            each = chosen.errors
            mean = Errors(*(float(np.mean([getattr(e, name) for e in each])) for name in ("nearest", "written")))
            errors.append(mean)
            progress(number + 1, len(self._layers), f"error {mean.written:.2e} instead of {mean.nearest:.2e}")
        return errors

    def others(self) -> None:
        """Carry along the tensors that no layer changed."""
        for name in self._checkpoint.tensors():
            if name not in self._done:
                self._out.add(name, self._read(name))

    def _gptq(self, products: list[Product], seen: dict[ModulePath, Seen], chosen: "_Chosen") -> None:
        bits, size = self._asked.bits, self._size
        for product in products:
            weight, gram = jnp.asarray(product.read(self._checkpoint)), seen[product.path].gram
            codes = compensate(weight, gram, bits=bits, size=size)
            chosen.rounded[product.path] = codes.on_host()
            whole = float(output_error(weight, gram)) + 1e-30
            both = (_nearest(weight, bits, size), codes)
            errors = (float(output_error(weight - each.dequantize(), gram)) / whole for each in both)
            chosen.errors.append(Errors(*errors))

    def _awq(self, number: int, products: list[Product], seen: dict[ModulePath, Seen], x: np.ndarray) -> "_Chosen":
        chosen = _Chosen()
        weights = {product.path: product.read(self._checkpoint) for product in products}
        scales: dict[ModulePath, Array] = {}
        ranges: dict[ModulePath, tuple[Array, Array]] = {}
        groups = groups_of(self._layers, number, products)
        for group in groups:
            result = self._learn(group, weights, seen[group.products[0].path])
            chosen.errors.append(Errors(float(result.before), float(result.after)))
            scale = np.exp(np.asarray(result.learned.log_scale))
            if group.norm is not None:
                tensors, scale = fold_into_norm(self._layers, number, group, scale, self._read)
                chosen.replaced |= tensors
            first = 0
            for product in group.products:
                rows = slice(first, first := first + len(weights[product.path]))
                ends = (np.asarray(result.learned.low)[rows], np.asarray(result.learned.high)[rows])
                scales[product.path], ranges[product.path] = scale, ends
        # Learned one by one of the weights as they were: a divided row is rounded as it would have been.
        for group in groups:
            for product in group.products:
                weights[product.path] *= scales[product.path][group.channel]
        for group in groups:
            if group.producer is not None:
                scale, into = scales[group.products[0].path], weights[group.producer.path]
                chosen.replaced |= fold_into_rows(group, scale, into, self._read)
        self._check_folding(number, products, weights, chosen.replaced, x)
        for path, weight in weights.items():
            low, high = map(jnp.asarray, ranges[path])
            chosen.rounded[path] = round_asymmetric(jnp.asarray(weight), self._size, low, high).on_host()
        return chosen

    def _learn(self, group: Group, weights: dict[ModulePath, Array], seen: Seen) -> Result:
        channels = int(group.channel.max()) + 1
        count = np.bincount(group.channel, minlength=channels)
        magnitude = np.bincount(group.channel, weights=np.asarray(seen.magnitude), minlength=channels) / count
        return learn(
            jnp.asarray(np.concatenate([weights[product.path] for product in group.products])),
            seen.gram,
            jnp.asarray(magnitude, jnp.float32),
            jnp.asarray(group.channel),
            size=self._size,
            steps=self._asked.steps,
            learning_rate=self._asked.learning_rate,
            is_scaled=group.is_scaled,
        )

    def _check_folding(
        self, number: int, products: list[Product], weights: dict[ModulePath, Array], replaced: dict, x: np.ndarray
    ) -> None:
        """Scales cancel, or the family does something between that is not known here."""
        folded = dict(replaced)
        for product in products:
            folded |= {name: weights[product.path][rows] for name, rows in product.slices().items()}
        before, after = (
            self._layers.advance(number, self._layers.fill(number, tensors), x[:1]) - x[:1] for tensors in ({}, folded)
        )
        if not np.linalg.norm(after - before) <= FOLDED * np.linalg.norm(before):
            raise ConfigError(
                f"scales of channels do not cancel in layer {number} of {self._config.architecture}; take --method gptq"
            )

    def _write(self, products: list[Product], chosen: "_Chosen") -> dict[str, Array]:
        """Write what the layer became. Returns the weights that it stands for, in float32."""
        floats = {}
        for product in products:
            rounded = chosen.rounded[product.path]
            for name, rows in product.slices().items():
                part = rounded.part(rows)
                for suffix, tensor in tensors_of(part, self._asked.method, self._asked.bits).items():
                    self._out.add(name.removesuffix("weight") + suffix, tensor)
                floats[name] = part.dequantize()
        for name, tensor in chosen.replaced.items():
            self._out.add(name, tensor)
        self._done |= {*floats, *chosen.replaced}
        return floats

    def _read(self, name: str) -> Array:
        """A tensor in the type in which it is written: the checkpoint's, or of a decoded GGUF file the model's."""
        tensor = self._checkpoint.read(name)
        is_decoded = self._checkpoint.format == "gguf" and tensor.dtype == np.float32
        return tensor.astype(self._config.dtype) if is_decoded else tensor


class _Chosen:
    """What a layer becomes: its linear layers by path, and tensors that took up scales by name."""

    def __init__(self) -> None:
        self.rounded: dict[ModulePath, Rounded] = {}
        self.replaced: dict[str, Array] = {}
        self.errors: list[Errors] = []


def _nearest(weight: jnp.ndarray, bits: int, size: int) -> Codes:
    """Symmetric groups rounded to the nearest."""
    grouped, middle = weight.reshape(len(weight), -1, size), 2.0 ** (bits - 1)
    scale = jnp.maximum(jnp.abs(grouped).max(-1) * 2 / (2 * middle - 1), 1e-30)
    return Codes(symmetric_codes(grouped, scale[..., None], middle), scale, jnp.full_like(scale, middle))
