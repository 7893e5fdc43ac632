"""The convolutional stem by hand.  `pytest tests/test_stem.py`"""

import torch

from stem import conv_stem
from vit import vit_pico


def test_the_stem_by_hand():
    """P = 2, D = 96: a convolution of stride 1 to 24 channels, one of stride 2 to 48 = D/2, and a linear map to 96.

    The last one reaches one pixel to the left and none to the right, so a token sees columns 2x − 2 to 2x + 2 of the
    image.  A pixel in column 7 is in tokens 3 and 4 of its row and no other.
    """
    embed = vit_pico(patch_size=2, img_size=16, stem=True).patch_embed
    for stem, expected in ((embed.stem, [(1, 24), (2, 48)]),
                           (conv_stem(16, 96), [(1, 3), (2, 6), (2, 12), (2, 24), (2, 48)])):  # fmt: skip
        assert [(layer.conv.stride[0], layer.conv.out_channels) for layer in stem] == expected
    for layer in embed.stem:
        layer.norm = torch.nn.Identity()  # it sees the whole image
    images = torch.zeros(1, 3, 16, 16)
    before = embed(images)
    images[:, :, 7, 7] = 1.0
    assert (embed(images) != before)[0].any(dim=0).nonzero().tolist() == [[3, 3], [3, 4], [4, 3], [4, 4]]
