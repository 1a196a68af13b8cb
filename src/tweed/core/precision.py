"""Which precision multiplies fast on a device."""

from typing import Literal

import torch


def fast_precision(device: torch.device | str) -> Literal["no", "bf16"]:
    """ "bf16" where the device multiplies it faster than float32 (recent GPUs, CPUs with AMX), else "no"."""
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.device(device).type == "cpu" and torch.cpu._is_amx_tile_supported() else "no"
