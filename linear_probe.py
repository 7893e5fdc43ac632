"""Linear classifiers on frozen features. (DINOv2 §7.1 and B.3; §7.2; §7.4)

    linear probe           W, b by SGD on     −(1/N) Σ_i log softmax(x_i W + b)_{y_i}
    logistic regression    W, b = argmin      −(1/N) Σ_i log softmax(x_i W + b)_{y_i} + (λ/2) ‖W‖²
    both                   ŷ = argmax_c (x W + b)_c
    segmentation           ŷ_u = argmax_c  up(z W + b)_{u,c},      mean IoU = (1/C) Σ_c |P_c ∩ T_c| / |P_c ∪ T_c|

    x_i    (D',)   feature of training image i, of N: one of B.3's four, [CLS] of 1 or 4 blocks, with or without the
                   mean patch token behind it
    y_i    ()      its label, one of C classes
    W, b   (D', C) and (C,): the only weights trained here
    λ      ()      strength of the L2 regularisation; b has none
    z      (P, D)  patch tokens of an image; up: its P logits, resized to the pixels u by bilinear interpolation
    P_c    ()      the pixels of all test images that are predicted as class c, as T_c are those that show it

The paper (B.3) trains on augmented images, for 13 rates, and reports whichever did best ON THE VALIDATION SET.  We take
each image as it is, its features computed once, and choose on a tenth of the TRAINING images: the test labels are read
once, for the final number.  Logistic regression (§7.2) follows Chen et al. 2020: no augmentation, L-BFGS, λ in
logarithmic steps; the best one is fitted once more to all training images, as in the official code.  Features are
standardised by mean and deviation of the training images, so that one set of rates and of λ serves any network.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

BLOCKS = 4  # B.3: of 1 or 4
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # ours: for standardised features; B.3 has 13
STEPS = 2000  # ours; the paper takes 12 500 (B.3)
BATCH = 512  # ours
MOMENTUM = 0.9  # official probe: SGD, momentum 0.9, no weight decay, cosine to 0
PENALTIES = tuple(10.0**power for power in range(1, -7, -1))  # λ, ours: 8 of them, the official code has 45
ITERATIONS = 100  # of L-BFGS for each λ, from the λ before; ours, the official code allows 1000
ROWS = 4096  # ours: rows whose logits are held at once
PICTURES = 64  # ours: pictures whose logits are held at once, for each pixel

# ---------------------------------------------------------------------------- features


def probe_tokens(vit, images):
    """Normalised images (b, 3, H, W) -> (b, (n + 1)·D): [CLS] of the last n blocks, then the last one's mean patch.

    n is 4, or the depth of a network that has less.
    """
    layers = vit.get_intermediate_layers(images, n=min(BLOCKS, len(vit.blocks)), return_class_token=True)
    return torch.cat([*(cls for _, cls in layers), layers[-1][0].float().mean(1)], dim=1)


def configurations(x, dim):
    """probe_tokens (N, (n + 1)·dim) -> {name: (N, D')}: B.3's four features, each some columns of it.

    >>> configurations(torch.arange(5)[None], 1)["[CLS] of 4 blocks and mean patch"]
    tensor([[0, 1, 2, 3, 4]])
    """
    n = x.shape[1] // dim - 1
    found = {}
    for blocks in dict.fromkeys((1, n)):
        name = f"[CLS] of {blocks} block{'s' * (blocks > 1)}"
        first = (n - blocks) * dim
        found |= {name: x[:, first : n * dim], f"{name} and mean patch": x[:, first:]}
    return found


def check(train_features, train_labels, test_features, test_labels):
    """One ValueError for arguments that no accuracy can be computed from; otherwise the number of classes."""
    for name, x, y in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"{name}: need features (N, D) and labels (N,) with N above 0, got {shapes}")
        if not x.isfinite().all():
            raise ValueError(f"{name} features hold NaN or infinite values: the network has diverged")
    return int(max(train_labels.max(), test_labels.max())) + 1


def standard_of(x):
    """Features (N, D) -> their mean and deviation, (D,) each."""
    variance, mean = torch.var_mean(x.float(), dim=0, correction=0)
    deviation = variance.sqrt()
    deviation[deviation <= 1e-6 * mean.abs()] = 1  # a constant column, but for rounding: it becomes 0
    return mean, deviation


def standardised(x, mean, deviation):
    """(b, D) -> (b, D + 1); the last column is 1, so that the last row of W is the bias."""
    return F.pad((x.to(mean.device).float() - mean) / deviation, (0, 1), value=1.0)


def held_out_tenth(n, generator):
    """Numbers of n training images, at random: a tenth to choose by, and the others to train on."""
    if n < 2:
        raise ValueError("linear classifiers need 2 training images or more: to train on, and to hold out")
    return torch.randperm(n, generator=generator).tensor_split([max(1, n // 10)])


# ---------------------------------------------------------------------------- linear probe (B.3)


def train_heads(x, y, rows, n_classes, standard, generator):
    """A head for each of L rates, trained on the same batches of the `rows` of x (N, D) and y (N,): (L, D + 1, C)."""
    rates = torch.tensor(RATES, device=x.device).view(-1, 1, 1)  # (L, 1, 1)
    W = torch.zeros(len(RATES), x.shape[1] + 1, n_classes, device=x.device)
    velocity = torch.zeros_like(W)
    for step in range(STEPS):
        batch = rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=generator)]  # (b,)
        x_b = standardised(x[batch], *standard)  # (b, D + 1)
        p = torch.einsum("bd,ldc->lbc", x_b, W).softmax(-1)  # (L, b, C)
        error = p - F.one_hot(y[batch], n_classes)  # (L, b, C), gradient of the cross-entropy
        velocity.mul_(MOMENTUM).add_(torch.einsum("bd,lbc->ldc", x_b, error) / len(batch))
        W -= rates * (1 + math.cos(math.pi * step / max(STEPS - 1, 1))) / 2 * velocity
    return W


def accuracies(x, y, W, standard):
    """Of heads W (L, D + 1, C) on features (n, D) with labels (n,): (L,)."""
    correct = torch.zeros(len(W), device=W.device)
    for x_b, y_b in zip(x.split(ROWS), y.split(ROWS), strict=True):
        predicted = torch.einsum("bd,ldc->lbc", standardised(x_b, *standard), W).argmax(-1)  # (L, b)
        correct += (predicted == y_b.to(W.device)).sum(1)
    return correct / len(x)


def linear_probe(train, train_labels, test, test_labels):
    """Test accuracy of the linear probe whose feature and rate did best on a tenth of the training images.

    train, test: the features to choose from, {name: (N, D')} and {name: (M, D')} with the same names; labels (N,) and
    (M,), N ≥ 2.  Of equals the first is taken.  Returns (fraction in [0, 1], name, rate); raises ValueError as k-NN.
    """
    best = -1.0
    for name, x in train.items():
        n_classes = check(x, train_labels, test[name], test_labels)
        generator = torch.Generator().manual_seed(0)  # the same images held out, and the same batches, for each feature
        held_out, rows = held_out_tenth(len(x), generator)
        y, standard = train_labels.to(x.device), standard_of(x)
        W = train_heads(x, y, rows, n_classes, standard, generator)
        scores = accuracies(x[held_out], y[held_out], W, standard)  # (L,)
        i = scores.argmax()
        if scores[i] > best:
            best, chosen = scores[i].item(), (name, RATES[i], W[i], standard)
    name, rate, W, standard = chosen
    return accuracies(test[name], test_labels, W[None], standard).item(), name, rate


def linear_accuracy(train_features, train_labels, test_features, test_labels):
    """`linear_probe` of one feature, (N, D) and (M, D) with labels (N,) and (M,): a fraction in [0, 1]."""
    return linear_probe({"": train_features}, train_labels, {"": test_features}, test_labels)[0]


# ---------------------------------------------------------------------------- logistic regression (§7.2)


@torch.enable_grad()
def minimise(x, y, penalty, W):
    """W (D + 1, C) of the smallest cross-entropy + (λ/2) ‖W‖² on x (N, D + 1), y (N,), by L-BFGS from the W given."""
    W = W.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([W], max_iter=ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(x @ W, y) + penalty / 2 * W[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return W.detach()


def logistic_regression(train_features, train_labels, test_features, test_labels):
    """Test accuracy of L2-regularised logistic regression, λ chosen on a tenth of the training images.

    Arguments as of `linear_accuracy`.  Of equals the largest λ is taken, and fitted to all training images.  Returns
    (fraction in [0, 1], λ).  Raises ValueError as k-NN does.
    """
    n_classes = check(train_features, train_labels, test_features, test_labels)
    held_out, rows = held_out_tenth(len(train_features), torch.Generator().manual_seed(0))
    standard = standard_of(train_features)
    x, y = standardised(train_features, *standard), train_labels.to(train_features.device)
    W, best = torch.zeros(x.shape[1], n_classes, device=x.device), -1.0
    for penalty in PENALTIES:
        W = minimise(x[rows], y[rows], penalty, W)
        score = accuracies(train_features[held_out], y[held_out], W[None], standard).item()
        if score > best:
            best, chosen = score, (penalty, W)
    penalty, W = chosen
    W = minimise(x, y, penalty, W)
    return accuracies(test_features, test_labels, W[None], standard).item(), penalty


# ---------------------------------------------------------------------------- segmentation (§7.4, "linear")


def commonest_parts(parts, h, w):
    """Parts of pixels (I, S, S) -> the commonest of each patch (I, h·w), int64; of equals the lowest."""
    n_parts = int(parts.max()) + 1
    pieces = [rearrange(F.one_hot(some.long(), n_parts), "i y x c -> i c y x") for some in parts.split(PICTURES)]
    return torch.cat([F.adaptive_avg_pool2d(piece.float(), (h, w)).argmax(1).flatten(1) for piece in pieces])


def confusion(tokens, parts, W, standard):
    """Counts of pixels (C, C), row the true part, column the predicted one, of tokens (I, P, D), parts (I, S, S).

    W: one head (D + 1, C); its logits on the grid of patches are resized to the pixels.
    """
    n_parts, side, counts = W.shape[1], math.isqrt(tokens.shape[1]), 0
    for z, truth in zip(tokens.split(PICTURES), parts.split(PICTURES), strict=True):
        logits = standardised(z.flatten(0, 1), *standard) @ W  # (i·P, C)
        logits = rearrange(logits, "(i y x) c -> i c y x", i=len(z), x=side)
        predicted = F.interpolate(logits, parts.shape[1:], mode="bilinear").argmax(1)  # (i, S, S)
        pairs = n_parts * truth.to(W.device).long() + predicted
        counts += torch.bincount(pairs.flatten(), minlength=n_parts**2)
    return counts.view(n_parts, n_parts)


def mean_iou(counts):
    """Counts (C, C), row true, column predicted -> mean over the classes of intersection over union.

    Classes that neither occur nor are predicted do not count.

    >>> mean_iou(torch.tensor([[3, 1], [0, 2]]))  # (3/4 + 2/3) / 2 = 17/24
    0.7083333333333333
    """
    both = counts.diag().double()  # (C,)
    union = counts.sum(0) + counts.sum(1) - both
    return (both[union > 0] / union[union > 0]).mean().item()


def segmentation_iou(train_tokens, train_parts, test_tokens, test_parts):
    """Mean IoU of a linear layer on patch tokens, on test pictures; its rate chosen on a tenth of the training ones.

    Tokens (N, P, D) and (M, P, D) of square grids, the part of each pixel (N, S, S) and (M, S, S), N ≥ 2.  A training
    patch is what most of its pixels are.  Returns (fraction in [0, 1], rate).  Raises ValueError as k-NN does.
    """
    n, n_patches, _ = train_tokens.shape
    side, n_parts = math.isqrt(n_patches), int(max(train_parts.max(), test_parts.max())) + 1
    x, test_x = train_tokens.flatten(0, 1), test_tokens.flatten(0, 1)  # (N·P, D), (M·P, D)
    y = commonest_parts(train_parts, side, side).flatten().to(x.device)  # (N·P,)
    check(x, y, test_x, torch.zeros(len(test_x), dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    held_out, pictures = held_out_tenth(n, generator)  # whole pictures: patches of one are alike
    rows = (pictures[:, None] * n_patches + torch.arange(n_patches)).flatten()
    standard = standard_of(x)
    W = train_heads(x, y, rows, n_parts, standard, generator)  # (L, D + 1, C)
    scores = [mean_iou(confusion(train_tokens[held_out], train_parts[held_out], head, standard)) for head in W]
    i = max(range(len(scores)), key=scores.__getitem__)
    return mean_iou(confusion(test_tokens, test_parts, W[i], standard)), RATES[i]
