"""bf16 where there is bf16 arithmetic, and nowhere else.  `pytest tests/test_precision.py`"""

import pytest
import torch

from support.device import autocast


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("enabled", [True, False])
def test_products_are_bf16_where_the_cpu_has_it_and_it_is_wanted(there, enabled, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: there)
    x = torch.ones(2, 2)
    with autocast("cpu", enabled):
        assert (x @ x).dtype == (torch.bfloat16 if there and enabled else torch.float32)
    assert (x @ x).dtype == torch.float32
