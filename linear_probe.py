"""Linear classifiers on frozen features. (DINOv2 §7.1 and B.3; §7.2; §7.4)

    linear probe           W, b by SGD on     −(1/N) Σ_i log softmax(x_i W + b)_{y_i}
    logistic regression    W, b = argmin      −(1/N) Σ_i log softmax(x_i W + b)_{y_i} + (λ/2) ‖W‖²
    segmentation           ŷ_u = argmax_c  up(z W + b)_{u,c},      mean IoU = (1/C) Σ_c |P_c ∩ T_c| / |P_c ∪ T_c|

    x_i    (D',)   feature of training image i of N: [CLS] of 1 or 4 blocks, with or without the mean patch token (B.3)
    y_i    ()      label of image i, one of C classes
    W, b   (D', C) and (C,): the only trained weights
    λ      ()      strength of the L2 penalty; b has none
    z      (P, D)  patch tokens of an image; `up` resizes their logits to the pixels u by bilinear interpolation
    P_c    ()      pixels of all test images that are predicted as class c; T_c are the pixels that show class c

The paper (B.3) trains on augmented images and reports the best of its 13 rates on the VALIDATION SET.  We compute each
image's features once, without augmentation, and choose hyper-parameters on a tenth of the TRAINING images.  We
standardize the features, so that one set of rates and of λ works for every network.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # ours, for standardized features; B.3 has 13
STEPS = 2000  # ours; the paper takes 12 500 (B.3)
BATCH = 512  # ours
PENALTIES = tuple(10.0**power for power in range(1, -7, -1))  # λ, ours: 8 values; the official code has 45
ROWS = 4096  # ours: rows whose logits are in memory at once


def probe_tokens(vit, images):
    """Images (b, 3, H, W) -> (b, (n + 1)·D): [CLS] of the last n = 4 blocks (B.3), the last one's mean patch."""
    layers = vit.get_intermediate_layers(images, n=min(4, len(vit.blocks)), return_class_token=True)
    return torch.cat([*(cls for _, cls in layers), layers[-1][0].float().mean(1)], dim=1)


def b3_features(x, dim):
    """probe_tokens (N, (n + 1)·dim) -> {name: (N, D')}: the four features of B.3, each a slice of the columns."""
    n = x.shape[1] // dim - 1
    features = {}
    for blocks in (1, n):
        name, first = f"[CLS] of {blocks} block{'s' * (blocks > 1)}", (n - blocks) * dim
        features |= {name: x[:, first : n * dim], f"{name} and mean patch": x[:, first:]}
    return features


def count_classes(train_features, train_labels, test_features, test_labels):
    """The number of classes; ValueError for shapes that do not match, no rows, NaN or infinity."""
    for name, x, y in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"{name}: need features (N, D) and labels (N,) with N above 0, got {shapes}")
        if not x.isfinite().all():
            raise ValueError(f"{name} features are not finite: the network diverged; use an earlier checkpoint")
    return int(max(train_labels.max(), test_labels.max())) + 1


def mean_and_deviation(x):
    """Features (N, D) -> their mean and standard deviation, (D,) each; a constant column has deviation 1."""
    variance, mean = torch.var_mean(x.float(), dim=0, correction=0)
    deviation = variance.sqrt()
    deviation[deviation <= 1e-6 * mean.abs()] = 1  # rounding gives a constant column a small deviation
    return mean, deviation


def standardize(x, mean, deviation):
    """(b, D) -> (b, D + 1); the last column is 1, so that the last row of W is the bias."""
    return F.pad((x.to(mean.device).float() - mean) / deviation, (0, 1), value=1.0)


def hold_out_tenth(n):
    """Random indices of n images: a tenth to choose hyper-parameters on, the rest to train on; and the generator."""
    if n < 2:
        raise ValueError("linear classifiers need 2 training images or more; one of them is held out")
    generator = torch.Generator().manual_seed(0)  # same split and batches for each feature
    return *torch.randperm(n, generator=generator).tensor_split([max(1, n // 10)]), generator


def train_heads(x, y, rows, n_classes, standard, generator):
    """Train one head per rate on the same batches of the `rows` of x (N, D), y (N,): (L, D + 1, C) for L rates."""
    rates = torch.tensor(RATES, device=x.device).view(-1, 1, 1)  # (L, 1, 1)
    W = torch.zeros(len(RATES), x.shape[1] + 1, n_classes, device=x.device)
    velocity = torch.zeros_like(W)
    for step in range(STEPS):
        batch = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator)]  # (b,)
        x_b = standardize(x[batch], *standard)  # (b, D + 1)
        p = torch.einsum("bd,ldc->lbc", x_b, W).softmax(-1)  # (L, b, C)
        error = p - F.one_hot(y[batch], n_classes)  # (L, b, C), the gradient of the cross-entropy
        # The official probe: SGD with momentum 0.9, no weight decay, cosine to 0.
        velocity.mul_(0.9).add_(torch.einsum("bd,lbc->ldc", x_b, error) / len(batch))
        W -= rates * (1 + math.cos(math.pi * step / max(STEPS - 1, 1))) / 2 * velocity
    return W


def accuracies(x, y, W, standard):
    """Accuracies (L,) of heads W (L, D + 1, C) on features (n, D) with labels (n,)."""
    correct = torch.zeros(len(W), device=W.device)
    for x_b, y_b in zip(x.split(ROWS), y.split(ROWS), strict=True):
        predicted = torch.einsum("bd,ldc->lbc", standardize(x_b, *standard), W).argmax(-1)  # (L, b)
        correct += (predicted == y_b.to(W.device)).sum(1)
    return correct / len(x)


def linear_probe(train, train_labels, test, test_labels):
    """(Test accuracy, name, rate) of a linear probe (B.3); name and rate are chosen on a tenth of the training images.

    train, test: features {name: (N, D')}, {name: (M, D')}; labels (N,), (M,), N ≥ 2.  The first of equals wins.
    """
    heads = []
    for name, x in train.items():
        n_classes = count_classes(x, train_labels, test[name], test_labels)
        held_out, rows, generator = hold_out_tenth(len(x))
        y, standard = train_labels.to(x.device), mean_and_deviation(x)
        W = train_heads(x, y, rows, n_classes, standard, generator)
        scores = accuracies(x[held_out], y[held_out], W, standard)  # (L,)
        i = scores.argmax()
        heads.append((scores[i].item(), name, RATES[i], W[i].clone(), standard))
    _, name, rate, W, standard = max(heads, key=lambda head: head[0])
    return accuracies(test[name], test_labels, W[None], standard).item(), name, rate


def linear_accuracy(train_features, train_labels, test_features, test_labels):
    """`linear_probe` on one feature: (N, D), (N,), (M, D), (M,) -> fraction in [0, 1]."""
    return linear_probe({"": train_features}, train_labels, {"": test_features}, test_labels)[0]


@torch.enable_grad()
def fit_logistic(x, y, penalty, W):
    """The W (D + 1, C) that minimizes cross-entropy + (λ/2) ‖W‖² on x (N, D + 1), y (N,); L-BFGS from the given W."""
    W = W.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([W], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")  # ours: 100

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(x @ W, y) + penalty / 2 * W[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return W.detach()


def logistic_regression(train_features, train_labels, test_features, test_labels):
    """(Test accuracy, λ) of logistic regression (§7.2); λ is chosen on a tenth of the training images.

    Arguments as for `linear_accuracy`.  Of equally good λ the largest wins.  W is then fitted with it to all training
    images, as in the official code.
    """
    n_classes = count_classes(train_features, train_labels, test_features, test_labels)
    held_out, rows, _ = hold_out_tenth(len(train_features))
    standard = mean_and_deviation(train_features)
    x, y = standardize(train_features, *standard), train_labels.to(train_features.device)
    W, fits = torch.zeros(x.shape[1], n_classes, device=x.device), []
    for penalty in PENALTIES:
        W = fit_logistic(x[rows], y[rows], penalty, W)  # from the W of the λ before
        fits.append((accuracies(train_features[held_out], y[held_out], W[None], standard).item(), penalty, W))
    _, penalty, W = max(fits, key=lambda fit: fit[0])
    W = fit_logistic(x, y, penalty, W)
    return accuracies(test_features, test_labels, W[None], standard).item(), penalty


def confusion(tokens, parts, W, standard):
    """Pixel counts (C, C) of tokens (I, P, D), parts (I, S, S): row the true part, column the one that W predicts."""
    n_parts, side, counts = W.shape[1], math.isqrt(tokens.shape[1]), 0
    for z, truth in zip(tokens.split(64), parts.split(64), strict=True):  # 64 images: a logit per pixel takes memory
        logits = standardize(z.flatten(0, 1), *standard) @ W  # (i·P, C)
        logits = rearrange(logits, "(i y x) c -> i c y x", i=len(z), x=side)
        predicted = F.interpolate(logits, parts.shape[1:], mode="bilinear").argmax(1)  # (i, S, S)
        pairs = n_parts * truth.to(W.device).long() + predicted
        counts += torch.bincount(pairs.flatten(), minlength=n_parts**2)
    return counts.view(n_parts, n_parts)


def mean_iou(counts):
    """Pixel counts (C, C) -> mean intersection over union of the classes that occur or are predicted."""
    both = counts.diag().double()  # (C,)
    union = counts.sum(0) + counts.sum(1) - both
    return (both[union > 0] / union[union > 0]).mean().item()


def segmentation_iou(train_tokens, train_parts, test_tokens, test_parts):
    """(Mean IoU, rate) of a linear layer on patch tokens (§7.4); the rate is chosen on a tenth of the training images.

    Tokens (N, P, D), (M, P, D) of square grids; the part of each pixel (N, S, S), (M, S, S); N ≥ 2.  The label of a
    training patch is its most common part.
    """
    n, n_patches, _ = train_tokens.shape
    side, n_parts = math.isqrt(n_patches), int(max(train_parts.max(), test_parts.max())) + 1
    x, test_x = train_tokens.flatten(0, 1), test_tokens.flatten(0, 1)  # (N·P, D), (M·P, D)
    pixels = rearrange(train_parts, "i (h p) (w q) -> (i h w) (p q)", h=side, w=side)  # of each patch
    y = pixels.mode(1).values.long().to(x.device)  # (N·P,), the lowest of equally common parts
    count_classes(x, y, test_x, torch.zeros(len(test_x), dtype=torch.int64))  # only its checks
    held_out, images, generator = hold_out_tenth(n)  # whole images, because patches of one image are alike
    rows = (images[:, None] * n_patches + torch.arange(n_patches)).flatten()
    standard = mean_and_deviation(x)
    W = train_heads(x, y, rows, n_parts, standard, generator)  # (L, D + 1, C)
    scores = [mean_iou(confusion(train_tokens[held_out], train_parts[held_out], head, standard)) for head in W]
    i = max(range(len(scores)), key=scores.__getitem__)
    return mean_iou(confusion(test_tokens, test_parts, W[i], standard)), RATES[i]
