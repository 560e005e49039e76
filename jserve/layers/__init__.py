"""Building blocks of decoders, as flax.nnx modules. Their parameters know where they come from on disk."""
