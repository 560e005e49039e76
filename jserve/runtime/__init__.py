"""Everything that runs on the device; the only folder that calls `jax.jit`."""
