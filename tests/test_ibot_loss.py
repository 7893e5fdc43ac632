"""The patch-level loss: numbers worked out by hand, the double loop of the paper, invariances and extremes.

    pytest tests/test_ibot_loss.py
"""

import math

import pytest
import torch
from conftest import kept_for_backward

from ibot_loss import ibot_loss


def random_case(mask, K, seed=0):
    """Student logits and teacher probabilities (M, K) for a mask (B', N)."""
    generator = torch.Generator().manual_seed(seed)
    M = int(mask.sum())
    return torch.randn(M, K, generator=generator), torch.randn(M, K, generator=generator).mul(3).softmax(dim=-1)


def random_mask(B, N, seed=1):
    """(B', N) with image 0 unmasked and image 1 masked everywhere, where there are so many."""
    mask = torch.rand(B, N, generator=torch.Generator().manual_seed(seed)) < 0.4
    mask[0] = False
    mask[1:2] = True
    return mask


def slow_ibot_loss(z, p_t, mask, student_temp):
    """L_iBOT in float64 as §4 states it: images, then the masked patches of each."""
    total, row = torch.zeros((), dtype=torch.float64), 0
    for image in mask:
        cross_entropies = []
        for masked in image:
            if masked:
                log_p_s = (z[row].double() / student_temp).log_softmax(dim=-1)
                cross_entropies.append(-(p_t[row].double() * log_p_s).sum())
                row += 1
        if cross_entropies:
            total = total + torch.stack(cross_entropies).mean()
    return total / len(mask)


# --------------------------------------------------------------------------------------------------------
# The equation


def test_three_images_by_hand():
    """Masked: both patches of image 1, one of image 2, none of image 3.

    p_s = (1/4, 3/4), (1/2, 1/2), (1/3, 2/3) against p_t = (1, 0), (0, 1), (1, 0): log 4, log 2, log 3.
    Image 1 counts (log 4 + log 2)/2, image 2 log 3, image 3 nothing, and there are 3 images.
    """
    z = torch.tensor([[1.0, 3.0], [1.0, 1.0], [1.0, 2.0]]).log()
    p_t = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    mask = torch.tensor([[True, True], [False, True], [False, False]])
    expected = ((math.log(4) + math.log(2)) / 2 + math.log(3)) / 3
    assert ibot_loss(z, p_t, mask, student_temp=1.0).item() == pytest.approx(expected)


def test_temperature_by_hand():
    """At τ_s = 1/2 the student's (1, 3) becomes (1, 9)/10: against (0, 1) that is log 10/9."""
    z, p_t = torch.tensor([[1.0, 3.0]]).log(), torch.tensor([[0.0, 1.0]])
    loss = ibot_loss(z, p_t, torch.tensor([[True]]), student_temp=0.5)
    assert loss.item() == pytest.approx(math.log(10 / 9), rel=1e-5)


@pytest.mark.parametrize(("B", "N", "K"), [(1, 4, 3), (2, 9, 5), (6, 16, 40), (4, 49, 300)])
def test_is_the_double_loop_of_the_paper(B, N, K):
    mask = random_mask(B, N)
    z, p_t = random_case(mask, K)
    slow = slow_ibot_loss(z, p_t, mask, 0.1)
    torch.testing.assert_close(ibot_loss(z, p_t, mask).double(), slow, rtol=1e-5, atol=1e-5)


def test_gradient_is_that_of_the_double_loop():
    mask = random_mask(16, 9)
    z, p_t = random_case(mask, 20)
    slow = torch.autograd.grad(3 * slow_ibot_loss(z.requires_grad_(), p_t, mask, 0.1), z)[0]
    ours = torch.autograd.grad(3 * ibot_loss(z, p_t, mask), z)[0]
    torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------
# Properties


def test_order_of_images_does_not_matter():
    mask = random_mask(5, 9)
    z, p_t = random_case(mask, 7)
    order = torch.tensor([3, 1, 4, 0, 2])
    counts = mask.sum(dim=1).tolist()
    rows = torch.cat([torch.arange(len(z)).split(counts)[i] for i in order])
    torch.testing.assert_close(ibot_loss(z[rows], p_t[rows], mask[order]), ibot_loss(z, p_t, mask))


def test_place_of_the_masked_patches_in_an_image_does_not_matter():
    mask = random_mask(4, 9)
    z, p_t = random_case(mask, 7)
    torch.testing.assert_close(ibot_loss(z, p_t, mask.flip(1)), ibot_loss(z, p_t, mask))


def test_a_constant_added_to_a_row_of_logits_changes_nothing():
    mask = random_mask(4, 9)
    z, p_t = random_case(mask, 7)
    shift = torch.arange(float(len(z)))[:, None]
    torch.testing.assert_close(ibot_loss(z + shift, p_t, mask), ibot_loss(z, p_t, mask), rtol=1e-5, atol=1e-5)


def test_images_weigh_the_same_however_many_patches_are_masked():
    """Nine patches that cost log 2 and one that costs log 4: (log 2 + log 4)/2, not (9·log 2 + log 4)/10."""
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0], mask[1, 4] = True, True
    z = torch.tensor([[1.0, 1.0]] * 9 + [[1.0, 3.0]]).log()
    p_t = torch.tensor([[1.0, 0.0]]).expand(10, 2)
    assert ibot_loss(z, p_t, mask, 1.0).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_unmasked_images_dilute_the_mean():
    mask = random_mask(4, 9)
    z, p_t = random_case(mask, 7)
    twice = torch.cat([mask, torch.zeros_like(mask)])
    torch.testing.assert_close(ibot_loss(z, p_t, twice), ibot_loss(z, p_t, mask) / 2)


def test_agreement_costs_the_entropy_and_has_no_gradient():
    """Where p_s = p_t, H(p_t, p_s) = H(p_t), its minimum."""
    mask = torch.ones(1, 6, dtype=torch.bool)
    _, p = random_case(mask, 5)
    z = (p.log() * 0.1).requires_grad_()
    loss = ibot_loss(z, p, mask, student_temp=0.1)
    assert loss.item() == pytest.approx(-(p * p.log()).sum(dim=-1).mean().item(), rel=1e-5)
    assert torch.autograd.grad(loss, z)[0].abs().max() < 1e-6


# --------------------------------------------------------------------------------------------------------
# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("B", [2, 3])
def test_finite_in_every_type_and_inputs_unchanged(dtype, size, B):
    mask = random_mask(B, 4)  # the first image has no masked patch
    z, p_t = random_case(mask, 1000)
    p_t = torch.zeros_like(p_t).scatter(-1, p_t.topk(2).indices, 0.5)  # exact in every type
    z, p_t = (z.sign() * size).to(dtype), p_t.to(dtype)
    kept_z, kept_p, kept_mask = z.clone(), p_t.clone(), mask.clone()
    loss = ibot_loss(z.requires_grad_(), p_t, mask)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z.grad.isfinite().all()
    assert torch.equal(z, kept_z) and torch.equal(p_t, kept_p) and torch.equal(mask, kept_mask)
    torch.testing.assert_close(loss.detach().double(), slow_ibot_loss(kept_z, kept_p, mask, 0.1), rtol=1e-4, atol=1e-3)


def test_one_tensor_of_the_logits_size_and_type_is_kept():
    mask = random_mask(3, 9)
    z, p_t = random_case(mask, 50)
    z = z.bfloat16().requires_grad_()
    kept = kept_for_backward(lambda: ibot_loss(z, p_t, mask))
    assert [x for x in kept if x[0] == z.shape] == [(z.shape, z.dtype)] and len(kept) == 2  # and the weights (M,)


def test_nothing_masked_costs_nothing():
    z = torch.zeros(0, 8, requires_grad=True)
    loss = ibot_loss(z, torch.zeros(0, 8), torch.zeros(2, 9, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and z.grad.shape == (0, 8)


def test_autocast_around_it_changes_nothing():
    mask = random_mask(3, 9)
    z, p_t = random_case(mask, 50)
    expected = torch.autograd.grad(ibot_loss(z.requires_grad_(), p_t, mask), z)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = ibot_loss(z, p_t, mask)
    assert torch.equal(loss, ibot_loss(z, p_t, mask))
    assert torch.equal(torch.autograd.grad(loss, z)[0], expected)


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(AssertionError, match="2 student rows, but 3 teacher rows"):
        ibot_loss(torch.zeros(2, 4), torch.zeros(3, 4), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(RuntimeError):  # five masked patches, two rows
        ibot_loss(torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(1, 5, dtype=torch.bool))
