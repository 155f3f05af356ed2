"""Precision: bf16 autocast where the hardware has fast bf16 matrix products, float32 elsewhere."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context under which networks run forward."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(device, precision))


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether networks run in bf16 on this device."""
    return has_bf16(device) if precision == "auto" else precision == "bfloat16"


def has_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in float32: a GPU since Ampere, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(
        getattr(torch.cpu, probe, lambda: False)() for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
