"""The device that is being compiled for, as far as the choice of a kernel and its tiles depends on it."""

from dataclasses import dataclass

import jax

__all__ = ["H200", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """platform: "gpu", "cpu" or another of jax's; num_cores: SMs; capability: (9, 0) for an H100 or H200.

    kind: as jax calls the device, which names the table of its tiles (`pallas_kernels.tuning`); empty for none.
    """

    platform: str
    num_cores: int
    capability: tuple[int, int]
    kind: str = ""

    @property
    def has_wgmma(self) -> bool:
        """Whether products read operands from shared memory (Hopper on), which leaves registers free."""
        return self.capability >= (9, 0)

    @property
    def has_fp8(self) -> bool:
        """Whether float8 can be multiplied and converted (Ada and Hopper on)."""
        return self.capability >= (8, 9)

    @classmethod
    def current(cls) -> "Target":
        """The GPU that jax runs on, or the one that an abstract mesh names on a machine without it."""
        abstract = jax.sharding.get_abstract_mesh().abstract_device
        platform = jax.default_backend() if abstract is None else abstract.platform
        if platform not in ("gpu", "cuda"):
            return cls(platform, H200.num_cores, H200.capability)
        if jax.default_backend() == "gpu":
            device = jax.local_devices()[0]
            major, minor = (int(part) for part in device.compute_capability.split("."))
            return cls("gpu", device.core_count, (major, minor), device.device_kind)
        # Only compiling. An abstract device has no capability; of those in gpu_target A100 and B200 are no Hopper.
        assert abstract is not None
        kinds = {"A100": (8, 0), "B200": (10, 0)}
        matching = (capability for kind, capability in kinds.items() if kind in abstract.device_kind)
        capability = next(matching, H200.capability)
        return cls("gpu", abstract.num_cores or H200.num_cores, capability, abstract.device_kind)


H200 = Target("gpu", 132, (9, 0))
