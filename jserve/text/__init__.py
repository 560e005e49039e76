"""Text to tokens and back: tokenizers, chat templates, incremental decoding and stop strings.

Runs in the API process and never imports jax. `transformers` (seconds to import) is imported only for a
repository whose tokenizer the `tokenizers` library cannot load by itself.
"""
