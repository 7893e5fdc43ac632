"""The entry points of torch.hub, from this folder.  `pytest tests/test_hubconf.py`"""

from pathlib import Path

import pytest
import torch

import hubconf
import vit

REPO = str(Path(vit.__file__).parent)


def test_every_entry_is_listed_and_nothing_else():
    names = {f"vit_{n}" for n in ("pico", "mini", "nano", "tiny", "small", "base", "large", "giant2")}
    names |= {f"dinov2_vit{n}14{reg}" for n in "sblg" for reg in ("", "_reg")}
    assert {name for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"} == names


def test_options_of_vit_or_weights(tmp_path):
    network = torch.hub.load(REPO, "vit_nano", source="local", patch_size=4, img_size=8, n_registers=2).eval()
    assert network.n_registers == 2
    weights = tmp_path / "vit.pt"
    torch.save(network.state_dict(), weights)
    loaded = torch.hub.load(REPO, "vit_nano", source="local", weights=weights)
    x = torch.rand(1, 3, 8, 12)
    assert not loaded.training and torch.equal(loaded(x), network(x))
    with pytest.raises(ValueError, match="width 192 and depth 6; vit_tiny has width 192 and depth 12"):
        torch.hub.load(REPO, "vit_tiny", source="local", weights=weights)
    with pytest.raises(ValueError, match="the weights decide n_registers"):
        torch.hub.load(REPO, "vit_nano", source="local", weights=weights, n_registers=4)


def test_official_models_go_to_load_vit(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = vit.vit_nano(patch_size=14, img_size=28, n_registers=4)
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / "dinov2_vits14_reg4_pretrain.pth")
    loaded = torch.hub.load(REPO, "dinov2_vits14_reg", source="local")
    assert torch.equal(loaded.register_tokens, network.register_tokens)
