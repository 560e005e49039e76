"""From a checkpoint on disk to sharded arrays on devices."""
