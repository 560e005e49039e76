"""What each step of the engine computes: sequences, KV pages and the token budget. Pure Python, no jax."""
