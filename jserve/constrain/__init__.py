"""Which token may come next: grammars, bad words and thinking budgets, on the host, as bits per token.

The engine asks for one mask per row while the device computes the logits that it is laid over. Knows neither
jax nor the scheduler: tokens in, bits out.
"""
