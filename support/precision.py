"""bf16 where the hardware computes in it."""

import torch


def autocast(device, enabled=True):
    """bf16 where the hardware computes in it; elsewhere nothing, for emulated bf16 is slower than float32."""
    device = torch.device(device)
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    on_cpu = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and (on_gpu or on_cpu))
