"""What a computation ran on, in words that name no machine."""

from __future__ import annotations

import platform

from featcache.settings import usable_cores


def processor_name() -> str:
    """The processor, as it calls itself where that is known."""
    import torch

    # Younger than the oldest torch that is taken.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return str(dict(capabilities()).get("cpu_name") or platform.machine())


def device_in_words(device: str) -> str:
    """An accelerator by its name, or the processor with the number of threads that may be used.

    Args:
        device: a torch device.
    """
    import torch

    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_properties(device).name)
    return f"{processor_name()}, {usable_cores()} threads"
