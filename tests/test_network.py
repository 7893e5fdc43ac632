"""The two heads of a network, tied or not.  `pytest tests/test_network.py`"""

import torch

from network import build_network
from recipes import get_recipe


def test_heads():
    """Untied heads (the default) are two, drawn apart, each with its own bottleneck; tied ones are one."""
    network = build_network(get_recipe("shapes", dino_bottleneck=24, ibot_bottleneck=16, drop_path=0.3))
    assert network.dino_head.prototypes.shape == (128, 24) and network.ibot_head.prototypes.shape == (128, 16)
    assert network.backbone.drop_path == 0.3  # a distilled student's is 0: test_train.py
    network = build_network(get_recipe("shapes", tied_heads=True))
    assert network.dino_head is network.ibot_head


def test_positions_are_those_of_the_last_phase():
    """Patches of 8: 96 pixels at high resolution, 32 without it, 48 as asked; [CLS] has a position too."""
    for size, changes, n in ((None, {}, 12), (None, {"hires_share": 0.0}, 4), (48, {}, 6)):
        with torch.device("meta"):
            network = build_network(get_recipe("shapes", **changes), size)
        assert network.backbone.pos_embed.shape == (1, n * n + 1, 96)
