"""How a process computes with floating-point numbers, on every device."""

import torch


def set_arithmetic(precision: str = "fp32") -> None:
    """Settle it for the whole process, before anything is computed: threads take over what holds when they start.

    Numbers below 1.2e-38 become 0. Where attention is saturated, gradients are full of them, and matrix products with
    them are some ten times slower on CPUs.

    Args:
        precision: "tf32" lets NVIDIA GPUs multiply float32 with mantissas of 10 bits. With any other they keep all 23,
            also in convolutions, where PyTorch by itself does not.
    """
    tf32 = precision == "tf32"
    torch.set_flush_denormal(True)
    # torch.compile of PyTorch 2.9 to 2.11 fails where the newer setting `fp32_precision` was used instead
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
