"""Process A: HTTP, tokenizing, detokenizing, JSON and the supervision of the engine. Never imports jax."""
