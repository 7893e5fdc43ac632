"""The patch-level loss: numbers worked out by hand, the double loop of the paper, properties and extremes."""

import math

import pytest
import torch

from ibot_loss import ibot_loss


def random_case(B, N, K):
    """Student logits and teacher probabilities (M, K), and their mask (B, N): image 0 unmasked, image 1 all masked."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(B, N, generator=generator) < 0.4
    mask[0], mask[1:2] = False, True
    z, p_t = torch.randn(2, int(mask.sum()), K, generator=generator)
    return z, p_t.mul(3).softmax(dim=-1), mask


def slow_ibot_loss(z, p_t, mask, student_temp=0.1):
    """L_iBOT in float64 as in §4: a loop over images, then over the masked patches of each."""
    total, row = z.double().sum() * 0, 0
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize(("B", "N", "K"), [(1, 4, 3), (2, 9, 5), (6, 16, 40), (3, 4, 1000)])
def test_value_and_gradient_are_those_of_the_double_loop(B, N, K, size, dtype):
    """In every type and under autocast.  With B = 1 nothing is masked: the loss is 0."""
    z, p_t, mask = random_case(B, N, K)
    z, p_t = (z * size).to(dtype), p_t.to(dtype)
    kept_z, kept_p, kept_mask = z.clone(), p_t.clone(), mask.clone()
    with torch.autocast("cpu", torch.bfloat16):
        ours = ibot_loss(z.requires_grad_(), p_t, mask)
    slow = slow_ibot_loss(z.double(), p_t, mask)
    torch.testing.assert_close(ours.double(), slow, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss, z)[0] for loss in (ours, slow)]
    torch.testing.assert_close(*gradients, rtol=max(1e-4, torch.finfo(dtype).eps), atol=1e-6)
    assert torch.equal(z, kept_z) and torch.equal(p_t, kept_p) and torch.equal(mask, kept_mask)
    assert torch.equal(ours, ibot_loss(z, p_t, mask))


def test_rows_that_do_not_match_are_refused():
    with pytest.raises(AssertionError, match="2 student rows, but 3 teacher rows"):
        ibot_loss(torch.zeros(2, 4), torch.zeros(3, 4), torch.ones(1, 2, dtype=torch.bool))
