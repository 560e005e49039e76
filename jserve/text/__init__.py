"""Text to tokens and back: tokenizers, chat templates, incremental decoding and stop strings.

Runs in the API process and never imports jax. `transformers` (seconds to import) is imported only for a
repository whose tokenizer the `tokenizers` library cannot load by itself.
"""

from jserve.text.chat_template import ChatTemplate
from jserve.text.detokenizer import IncrementalDetokenizer
from jserve.text.load import load_tokenizer
from jserve.text.stop import StopMatcher
from jserve.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "IncrementalDetokenizer", "StopMatcher", "Tokenizer", "load_tokenizer"]
