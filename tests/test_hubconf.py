"""The entry points of torch.hub, from this folder.  `pytest tests/test_hubconf.py`"""

from pathlib import Path

import pytest
import torch

import hubconf
import vit

REPO = str(Path(vit.__file__).parent)


def test_every_entry_is_listed_with_its_name():
    names = {f"vit_{n}" for n in ("femto", "pico", "mini", "nano", "tiny", "small", "base", "large", "giant2")}
    official = {f"dinov2_vit{n}14{reg}" for n in "sblg" for reg in ("", "_reg")}
    entries = {name: value for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"}
    assert {entry.args[-1] for entry in entries.values()} == set(entries) == names | official
    assert [entries[f"dinov2_vit{n}14"].args[0] for n in "sblg"] == ["vit_small", "vit_base", "vit_large", "vit_giant2"]


def test_options_of_vit_or_weights(tmp_path):
    network = torch.hub.load(REPO, "vit_nano", source="local", patch_size=4, img_size=8, n_registers=2).eval()
    assert network.n_registers == 2
    weights = tmp_path / "vit.pt"
    torch.save(network.state_dict(), weights)
    loaded = torch.hub.load(REPO, "vit_nano", source="local", weights=weights)
    x = torch.rand(1, 3, 8, 12)
    assert not loaded.training and torch.equal(loaded(x), network(x)) and loaded(x).requires_grad
    with pytest.raises(ValueError, match="is 192 wide and 6 deep; vit_tiny: 192 wide, 12 deep"):
        torch.hub.load(REPO, "vit_tiny", source="local", weights=weights)
    with pytest.raises(ValueError, match="the weights decide n_registers"):
        torch.hub.load(REPO, "vit_nano", source="local", weights=weights, n_registers=4)
