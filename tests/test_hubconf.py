"""The entry points of torch.hub, from this folder.  `pytest tests/test_hubconf.py`"""

from pathlib import Path

import pytest
import torch

import hubconf
import vit
from support.weights import load_vit

REPO = str(Path(vit.__file__).parent)


def test_every_entry_is_listed_with_its_name():
    names = {f"vit_{n}" for n in ("pico", "mini", "nano", "tiny", "small", "base", "large", "giant2")}
    official = {f"dinov2_vit{n}14{reg}" for n in "sblg" for reg in ("", "_reg")}
    entries = {name: value for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"}
    assert {name: entry.args for name, entry in entries.items()} == {name: (name,) for name in names | official}
    assert all(entries[name].func is load_vit for name in official)


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
