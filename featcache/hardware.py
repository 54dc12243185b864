"""What a computation ran on, in words that name no machine."""

from __future__ import annotations

import os
import platform


def processor_name() -> str:
    """The processor, as it calls itself where that is known."""
    import torch

    return str(dict(torch.cpu.get_capabilities()).get("cpu_name") or platform.machine())


def device_in_words(device: str) -> str:
    """An accelerator by its name, or the processor with the number of its threads.

    Args:
        device: a torch device.
    """
    import torch

    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_properties(device).name)
    return f"{processor_name()}, {os.cpu_count()} threads"
