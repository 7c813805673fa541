"""Published memory and peak rates of TPU chips, the upper bounds for any program."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """Memory and peak rates of one chip."""

    memory: int  # bytes
    flops: float  # bfloat16 operations per second
    bandwidth: float  # bytes per second from its memory
    interconnect: float  # bytes per second to other chips of the slice, one way, all links together


# Source: docs.cloud.google.com/tpu/docs, pages v4, v5e, v5p and v6e. The interconnect is half of the "bidirectional
# bandwidth per chip" given there. For v4, whose page does not give it, it is the pod's all-reduce bandwidth, 1.1 PB/s,
# divided by its 4096 chips (for v5e and v6e both computations agree).
CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1200e9, 1.1e15 / 4096),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, 400e9),
}
