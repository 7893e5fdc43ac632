"""Break it yourself: changes of one line, what then goes wrong, and the test that says so.

`tests/test_book.py` makes each of them on a copy and sees its test fail.  A line is written without its indent, and
stands once in its file.
"""



EXERCISES = {  # file: [(line, what to write in its place, what happens, test), ...]
    "dino_loss": [
        (
            "q_s = q - p_t[s] if s < G else q  # (B, K)",
            "q_s = q",
            "A global view now learns from its own teacher as well, which sees the very same crop: the easiest of "
            "all pairs, and one that says nothing of the picture.  No shape changes, and no number is strange.",
            "test_no_view_learns_from_its_own_teacher",
        ),
        (
            "return total / (B * G * (V - 1))",
            "return total / (B * V)",
            "The sum is divided by the number of views instead of pairs, so the loss grows with the number of "
            "teacher views, and its weight beside the patch loss with it.",
            "test_two_global_views_and_a_local_one_by_hand",
        ),
    ],
    "ibot_loss": [
        (
            "return (weight * cross_entropy(z_s, p_t, student_temp)).sum() / len(mask)",
            "return cross_entropy(z_s, p_t, student_temp).mean()",
            "Every masked patch counts the same, so a view with half of its patches masked has five times the say "
            "of one with a tenth.",
            "test_three_images_by_hand",
        ),
        (
            "return (weight * cross_entropy(z_s, p_t, student_temp)).sum() / len(mask)",
            "return (weight * cross_entropy(z_s, p_t, student_temp)).sum() / (M_b > 0).sum()",
            "Views without a mask no longer count 0: with half of the views masked the loss is twice the official "
            "one.",
            "test_three_images_by_hand",
        ),
    ],
    "cross_entropy": [
        (
            "p, log_s = p.float(), (z.float() / temp).log_softmax(dim=1)",
            "p, log_s = p.float(), ((z.float() / temp).exp() / (z.float() / temp).exp().sum(dim=1, "
            "keepdim=True)).log()",
            "The same on paper; but a row's largest number is no longer taken off before exp, and logits of 10,000 "
            "are infinite.",
            "test_finite_in_every_type_and_inputs_unchanged",
        ),
        (
            "g.copy_(s.mul_(n).sub_(p).div_(temp))",
            "g.copy_(s.sub_(p).div_(temp))",
            "Right for rows that sum to 1, wrong for the sums of targets that `dino_loss` hands over.",
            "test_by_hand",
        ),
        (
            "g.copy_(s.mul_(n).sub_(p).div_(temp))",
            "g.copy_(s.mul_(n).sub_(p))",
            "The value is right and the gradient too small by the temperature, so only a test of the gradient sees "
            "it.",
            "test_value_and_gradient_are_those_of_the_plain_equation",
        ),
    ],
    "koleo": [
        (
            "nearest = (x @ x.T).fill_diagonal_(-torch.inf).argmax(dim=1)  # (B,)",
            "nearest = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)",
            "A cosine of −1 is no barrier between opposite points: the first of them is now its own nearest, at "
            "distance 0.",
            "test_an_antipodal_pair_by_hand",
        ),
        (
            "return -0.5 * (d_squared + eps).log().mean()",
            "return -0.5 * d_squared.log().mean()",
            "Two equal images in a batch make the loss infinite.",
            "test_equal_rows_by_hand",
        ),
        (
            "x = x / norm.masked_fill(norm <= eps, torch.inf)  # (B, D)",
            "x = x * 1.0",
            "Distances are no longer those of directions: longer features are further apart, and the loss stretches "
            "them instead of turning them.",
            "test_three_directions_by_hand",
        ),
    ],
    "sinkhorn": [
        (
            "log_Q -= logsumexp_over_samples(log_Q)  # (K,)",
            "logsumexp_over_samples(log_Q)",
            "The first division by columns is left out: one iteration is then a plain softmax.",
            "test_three_iterations_by_hand",
        ),
        (
            "return top + sum_over_ranks((x - top).exp_().sum(dim=0)).log()",
            "return sum_over_ranks(x.exp().sum(dim=0)).log()",
            "A column's largest number is no longer taken off before exp: scores of 4 at τ = 0.04 are exp(100), and "
            "that is infinite in float32.",
            "test_finite_in_every_type_and_inputs_unchanged",
        ),
        (
            "for _ in range(n_iters - 1):",
            "for _ in range(n_iters):",
            "One iteration too many.  Rows still sum to 1, and columns are even nearer to their share; two numbers "
            "by hand show it.",
            "test_three_iterations_by_hand",
        ),
    ],
    "centering": [
        (
            "p_t = ((z - self.centre) / temp).softmax(dim=-1)  # (B, K)",
            "p_t = (z / temp).softmax(dim=-1)",
            "The centre is kept and never used: a preference common to all images stays, and one prototype can take "
            "them all.",
            "test_a_preference_common_to_all_images_goes_away",
        ),
        (
            "self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), 1 - self.momentum)",
            "self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), self.momentum)",
            "The centre forgets nine tenths with each batch.  The example by hand has m = ½ and cannot see it; the "
            "slow loop has 0.8.",
            "test_is_the_slow_loop",
        ),
    ],
    "head": [
        (
            "w_hat = F.normalize(self.prototypes, dim=1)  # (K, bottleneck_dim)",
            "w_hat = self.prototypes",
            "Each prototype has a length again, which multiplies its logits: a temperature of its own, that is "
            "trained.",
            "test_lengths_of_prototypes_do_not_matter_and_do_not_learn",
        ),
        (
            "y_hat = F.normalize(self.mlp(x).float(), dim=-1, eps=1e-6)  # (..., bottleneck_dim)",
            "y_hat = self.mlp(x).float()",
            "Logits are no cosines any more, and the network can sharpen its own output by making features longer.",
            "test_logits_are_cosines",
        ),
    ],
    "masking": [
        (
            "for _ in range(ROUNDS):",
            "for _ in range(0):",
            "No rectangle is laid, and patch by patch the count is filled up: right numbers, but dots, which their "
            "neighbours give away.",
            "test_masks_are_blocks",
        ),
        (
            "top = (u_top[:, None] * (height + h - 1)).floor() - h + 1  # (n, 1)  from 1 − h to height − 1",
            "top = (u_top[:, None] * (height - h + 1)).floor()",
            "Rectangles stay within the grid, so the upper and lower edges are covered less often than the middle.",
            "test_every_patch_is_masked_about_equally_often",
        ),
        (
            "shares = low + (high - low) * (torch.arange(n) + 0.5) / max(n, 1)  # (n,)",
            "shares = low + (high - low) * torch.rand(n, generator=generator)",
            "The number of masked patches is another one in each step; a compiled step would be compiled again.",
            "test_counts_by_hand",
        ),
    ],
    "schedule": [
        (
            "progress = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)",
            "progress = min((step - warmup) / max(total - warmup, 1), 1.0)",
            "The end value would come one step after the last.",
            "test_cosine_by_hand",
        ),
        (
            "return warmup_start + (start - warmup_start) * step / warmup",
            "return start * step / warmup",
            "Every warm-up begins at 0, whatever it was asked to begin at: the teacher's temperature would be 0.",
            "test_warmup_by_hand",
        ),
        (
            "return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))",
            "return end + (start - end) * (1 - progress)",
            "A straight line, right at both ends and in the middle.",
            "test_cosine_by_hand",
        ),
    ],
    "optimizer": [
        (
            'group["weight_decay"] = values["weight_decay"] * group["decay_factor"]',
            'group["weight_decay"] = values["weight_decay"]',
            "Norms, biases and LayerScale are drawn to 0 with all else; a norm whose scale is 0 says the same of every "
            "token.",
            "test_adamw_by_hand",
        ),
        (
            "return r.layer_decay ** (n + 1 - layer) * (r.patch_embed_lr if \".patch_embed.\" in name else 1.0)",
            "return r.layer_decay ** layer * (r.patch_embed_lr if \".patch_embed.\" in name else 1.0)",
            "Upside down: the first layers, whose edges and colours are done first, have the highest rate.  With the "
            "paper's own decay of 1.0 nothing would show it.",
            "test_parameter_groups",
        ),
        (
            'group["lr"] = 0.0 if frozen else values["lr"] * group["lr_factor"]',
            'group["lr"] = values["lr"] * group["lr_factor"]',
            "The prototypes turn while the network below them still says nothing, and follow whatever it says first.",
            "test_frozen_prototypes_neither_move_nor_shrink",
        ),
    ],
    "train": [
        (
            '"koleo": sum(koleo_loss(view) for view in cls[: 2 * B].chunk(2)),  # two views of an image need not '
            "repel",
            '"koleo": koleo_loss(cls[: 2 * B]),',
            "The nearest other [CLS] token is mostly that of the other view of the same image: KoLeo then pulls "
            "apart what the image loss draws together.",
            "test_koleo_spreads_each_global_view_by_itself",
        ),
        (
            "seen = [None if r.teacher else masks, None][: len(crops)]  # §5: a distilled student sees every patch",
            "seen = [None, None][: len(crops)]",
            "The student sees the patches that it should tell from what is around them, and can copy them.",
            "test_the_student_alone_sees_masks",
        ),
        (
            "torch._foreach_lerp_(old, new, 1 - momentum)",
            "torch._foreach_lerp_(old, new, momentum)",
            "The teacher is nearly the student of the step before, and follows each of its errors.",
            "test_teacher_is_a_moving_average",
        ),
    ],
    "vit": [
        (
            "return (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1) @ v",
            "return (q @ k.mT).softmax(dim=-1) @ v",
            "Without 1/√d the scores grow with the width of a head, and attention falls on fewer tokens.",
            "test_attention_is_the_fused_one_short_and_long",
        ),
        (
            "return self.w3(F.silu(gate) * value)",
            "return self.w3(F.silu(value) * gate)",
            "Gate and value change places: the same family of networks, but official weights give other features.",
            "test_is_the_slow_one",
        ),
        (
            "scale = torch.cat([torch.full((k * n, 1), b / k, device=device) for (b, n), (k, _) in zip(shapes, "
            "kept)])  # (T', 1)",
            "scale = torch.cat([torch.ones(k * n, 1, device=device) for (b, n), (k, _) in zip(shapes, kept)])",
            "A branch that is computed for some of the samples counts no more for these: in evaluation, where all "
            "have it, it is stronger than it ever was in training.",
            "test_stochastic_depth_keeps_the_expectation",
        ),
    ],
    "augment": [
        (
            "(0.5, 0.8, 0.2, 1.0, 0.0),  # of the first global view",
            "(0.5, 0.8, 0.2, 0.0, 0.0),",
            "p and 1 − p of the blur are swapped, as in the official code: the first view is never blurred.  "
            "Nothing crashes and no shape is wrong; one must count.",
            "test_rates_of_each_view",
        ),
        (
            "return torch.minimum(x, 1 - x, out=x)",
            "return x.neg_().add_(1)",
            "Solarisation inverts all pixels instead of the light ones.",
            "test_solarize_by_hand",
        ),
        (
            "return x.mul_(s).add_(mean * (1 - s)).clamp_(0, 1)",
            "return x.mul_(s).clamp_(0, 1)",
            "Contrast without its mean is brightness once more.",
            "test_contrast_by_hand",
        ),
    ],
    "evaluate": [
        (
            "weight = ((similarity - similarity[:, :1]) / temp).exp()  # (m, k)",
            "weight = (similarity / temp).exp()",
            "The same votes on paper; at a temperature of 0.001 they are all infinite.",
            "test_knn_does_not_overflow",
        ),
        (
            "train = F.normalize(train_features.float(), dim=1)  # (N, D)",
            "train = train_features.float()",
            "Neighbours are chosen by the dot product: a long feature is everybody's neighbour.",
            "test_knn_counts_k_neighbours_by_cosine",
        ),
    ],
    "linear_probe": [
        (
            "scores = accuracies(x[held_out], y[held_out], W, standard)  # (L,)",
            "scores = accuracies(test[name], test_labels, W, standard)",
            "Feature and rate are chosen by the test labels, and the accuracy is a little too good.",
            "test_probe_never_sees_the_test_labels",
        ),
        (
            "value = F.cross_entropy(x @ W, y) + penalty / 2 * W[:-1].square().sum()",
            "value = F.cross_entropy(x @ W, y) + penalty / 2 * W.square().sum()",
            "The bias is kept small like a weight, so a strong penalty pulls rare and common classes together.",
            "test_the_bias_is_not_regularised",
        ),
        (
            "union = counts.sum(0) + counts.sum(1) - both",
            "union = counts.sum(0) + counts.sum(1)",
            "What both have in common counts twice in the union, and nothing reaches more than a half.",
            "test_mean_iou_by_hand",
        ),
    ],
    "ablate": [
        (
            '"both-untied": PLAIN,',
            '"both-untied": {**PLAIN, "tied_heads": True},',
            "Two arms are one, and untying the heads does nothing, twice measured.",
            "test_arms_differ_and_the_whole_is_the_recipe",
        ),
        (
            '"+koleo": {"hires_share": 0.0},',
            '"+koleo": {},',
            "KoLeo and the high-resolution end come in one step, and nobody knows which of them did it.",
            "test_each_arm_of_the_first_half_adds_one_component",
        ),
    ],
    "pca_viz": [
        (
            "return on_border * n_inner - inner * n_border, on_border + inner, s[0].item()",
            "return on_border + inner, s[0].item()",
            "The smaller side is the object: true of most pictures, and wrong for every close-up.",
            "test_a_close_up_is_not_its_background",
        ),
        (
            "y = centred @ (vectors * largest.sign())  # (n, k)",
            "y = centred @ vectors",
            "The signs of eigenvectors are left to the library: colours change from machine to machine.",
            "test_components_are_those_of_the_svd",
        ),
    ],
    "curate": [
        (
            'for start, cosines, ids in nearest_in_blocks(x, x, k + 1, seed, "neighbours"):  # a row is among its '
            "own",
            'for start, cosines, ids in nearest_in_blocks(x, x, k, seed, "neighbours"):',
            "A row is its own nearest neighbour, so one of the k is lost; with k = 1 there are no edges at all.",
            "test_only_the_nearest_neighbours_make_edges",
        ),
        (
            "return np.flatnonzero(~np.isin(label[:n], label[n:]))",
            "return np.setdiff1d(np.arange(n), near)",
            "Only the images near a test image go; their own copies, a little further away, stay.",
            "test_a_component_goes_whole",
        ),
        (
            "chosen = order[(place < per_cluster) & (hits[cluster[order]] > min_hits)]",
            "chosen = order[(place < per_cluster) & (hits[cluster[order]] >= min_hits)]",
            "The paper asks for more than three; here three are enough.",
            "test_clusters_by_hand",
        ),
    ],
    "matching": [
        (
            "mutual = back[there] == i",
            "mutual = i == i",
            "Each patch is matched with its nearest, whether or not that one agrees.",
            "test_mutual_matches_by_hand",
        ),
        (
            "cosine = F.normalize(a[rows].double(), dim=1) @ F.normalize(b[columns].double(), dim=1).T  # (N', M')",
            "cosine = a[rows].double() @ b[columns].double().T",
            "Long features win: of the three patches by hand one has nine times the length, and takes the matches.",
            "test_mutual_matches_by_hand",
        ),
    ],
    "attention": [
        (
            "a = (q[:, :, :1] * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)  # (B, h, 1, n)",
            "a = (q[:, :, :1] @ k.mT).softmax(dim=-1)",
            "Without 1/√d the map is sharper than the network's own.",
            "test_by_hand",
        ),
        (
            "return a[:, :, 0, 1 + vit.n_registers :]",
            "return a[:, :, 0, 1:]",
            "Registers are taken for the first patches, and every patch is drawn in another place.",
            "test_by_hand",
        ),
    ],
    "pca_hash": [
        (
            "covariance = x.T @ x + PRIOR * variance * prior / np.trace(prior)  # (S², S²)",
            "covariance = x.T @ x",
            "A handful of pictures has fewer than 64 components; the rest are arbitrary, and see brightness.",
            "test_principal_components_are_orthonormal_and_few_pictures_do",
        ),
        (
            "for bits in np.array_split(np.arange(64, dtype=np.uint64), n_bits + 1):",
            "for bits in np.array_split(np.arange(64, dtype=np.uint64), max(n_bits, 1)):",
            "With as many parts as bits may differ, all parts may differ, and a copy is in no common bucket.",
            "test_copies_are_those_of_brute_force",
        ),
    ],
    "neighbours": [
        (
            "order = np.lexsort((ids, -scores))[:, :k]",
            "order = np.argsort(-scores, axis=1)[:, :k]",
            "Equal scores keep the order in which they came, which depends on the number of processes.",
            "test_best_by_hand",
        ),
        (
            "real = row >= 0",
            "real = row >= -1",
            "−1, which is nobody, is the last row to NumPy: it becomes everybody's neighbour.",
            "test_exact_cosines_by_hand",
        ),
    ],
    "recipes": [
        (
            "lr=2e-4, lr_warmup=0.16,  # 80 of 500 epochs, official vitl14.yaml; the peak is Table 16's 3.5e-4",
            "lr=3.5e-4, lr_warmup=0.16,",
            "The table's rate is the peak, already multiplied by √(batch/1024); here it is multiplied twice.",
            "test_vitl14_has_the_papers_schedule",
        ),
        (
            "steps=635_000, hires_share=10 / 635,  # 625 000 (Table 16) + 10 000 (B.2)",
            "steps=625_000, hires_share=10 / 625,",
            "The phase at high resolution is taken out of the 625,000 steps instead of following them.",
            "test_vitl14_has_the_papers_schedule",
        ),
    ],
    "distributed": [
        (
            "return dist.get_rank() if dist.is_initialized() else 0",
            "return dist.get_rank()",
            "A single process has no group to ask, and `train.py` without torchrun ends here.",
            "test_every_function_is_a_no_op_in_a_single_process",
        ),
        (
            "return bool(flag)",
            "return flag",
            "What a single process answers is then not what several answer: a list of signals instead of true or "
            "false.",
            "test_every_function_is_a_no_op_in_a_single_process",
        ),
    ],
}


def changed(source, line, new):
    """The source with that one line written anew, at its indent."""
    lines = source.split("\n")
    [at] = [i for i, text in enumerate(lines) if text.strip() == line]
    lines[at] = lines[at][: len(lines[at]) - len(lines[at].lstrip())] + new
    return "\n".join(lines)
