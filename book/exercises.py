"""Break it yourself: questions about one-line changes to the equations and the step, their answers, and the tests.

A line stands here without its indent and trailing comment, and occurs once in its file.  Numbers of a run were measured
as MEASURED says; the others follow from the examples by hand, or were computed with the changed function.
"""

MEASURED = """Think first; each answer is folded away.  "By hand" means the worked examples above.  "In a run" means
step 580 of `python train.py --steps 600 --ibot_weight 1 --log_every 10{}` with the change, seed 0.  Without it, {}.
Longer runs have other numbers, because all schedules are compressed into these 600 steps."""
USUAL = ("", """L_DINO is 4.60, L_iBOT 1.63, L_KoLeo −0.25, the entropy of one target 0.54 of ln K, and that of a
batch's mean target 0.98""")
RUNS = {"centering": (" --centering softmax", "L_DINO is 4.36, and the entropies are 0.65 and 0.89")}

EXERCISES = {  # file: [(line, new line, what happens, test), ...]
    "dino_loss": [
        ("q_s = q - p_t[s] if s < G else q", "q_s = q",
         "A global view now also learns from its own teacher, which sees the same crop.  This pair is the easiest one"
         " and teaches nothing about the image.  In the example by hand it adds log 4 and log 2, so the loss is 1.14 "
         "and not 0.62.  No shape changes, but in a run two numbers look wrong: L_DINO is 5.82, more than ln 128 = "
         "4.85, and the entropy of one target is 0.23.", "test_two_global_views_and_a_local_one_by_hand"),
        ("return total / (B * G * (V - 1))", "return total / (B * V)",
         "The sum is divided by the number of views, not of pairs.  By hand that is 3 and not 4, so the loss is 0.83 "
         "and not 0.62.  In the default run it is 4 and not 6, and L_DINO is 6.63.  So it weighs 1.5 times as much "
         "as the recipe says.  One thing looks wrong: a flat student has ln 128 = 4.85.",
         "test_two_global_views_and_a_local_one_by_hand"),
        ("log_p_s = (z_s.float() / student_temp).log_softmax(dim=-1)", "log_p_s = z_s.float().log_softmax(dim=-1)",
         "The student has lost its temperature.  Its logits are cosines in [−1, 1], so its largest possible "
         "probability is e/(e + 127/e) = 0.055 with 128 prototypes, and 0.0001 with 65,536.  It cannot match a sharp "
         "target.  By hand the loss is log 4 = 1.39 and not log 10 = 2.30.  In a run L_DINO is 4.13 and not "
         "4.60; losses with different temperatures cannot be compared.", "test_temperature_by_hand"),
    ],
    "ibot_loss": [
        ("return (weight * H).sum() / len(mask)", "return H.mean()",
         "Every masked patch counts the same, so a view with half of its patches masked counts five times as much as "
         "a view with a tenth.  Views without a mask no longer count as 0.  By hand the loss is (log 4 + log 2 + log "
         "3)/3 = 1.06 and not 0.71.  In a run L_iBOT is 3.10.", "test_three_images_by_hand"),
        ("return (weight * H).sum() / len(mask)", "return (weight * H).sum() / (M_b > 0).sum()",
         "Views without a mask no longer count as 0.  By hand two of three views have one, so the loss is 1.5 times "
         "as large: 1.07 and not 0.71.  In the default run half of the views have one, so the loss doubles: L_iBOT is"
         " 3.23.", "test_three_images_by_hand"),
        ("H = -(p_t * (z_s.float() / student_temp).log_softmax(dim=-1)).sum(dim=-1)",
         "H = -((z_s.float() / student_temp).softmax(dim=-1) * p_t.log()).sum(dim=-1)",
         "Student and teacher have changed places.  A cross-entropy is not symmetric: this one is infinite where a "
         "target is 0 and the student is not, as in the example by hand.  Targets at τ_t = 0.01 do underflow to 0.  A"
         " run stops at step 70, because its gradients are not finite.", "test_three_images_by_hand"),
    ],
    "koleo": [
        ("nearest = (x @ x.T).fill_diagonal_(-torch.inf).argmax(dim=1)",
         "nearest = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)",
         "Opposite points have a cosine of −1 too.  The first of them is now its own nearest neighbour, at distance "
         "0, which counts as 10⁻⁴.  By hand the loss is 4.26 and not −log 2 = −0.69.  In a large batch every point "
         "has a nearer neighbour, so no run shows it.", "test_an_antipodal_pair_by_hand"),
        ("return -0.5 * (d_squared + eps).log().mean()", "return -0.5 * d_squared.log().mean()",
         "Two equal images in a batch make the loss infinite, and not log 10⁴ = 9.21.  Their gradient is NaN, since "
         "it is 0/0.  One such batch ends a run of days.", "test_equal_rows_by_hand"),
        ("x = x / norm.masked_fill(norm <= eps, torch.inf)", "x = x + 0 * norm",
         "Rows keep their lengths, and longer features are farther apart without any spread.  By hand the loss is "
         "−1.43 and not 0.34.  In a run L_KoLeo is −5.20 for two views: distances of about 13.5.  On a unit sphere no"
         " distance is above 2.", "test_three_directions_by_hand"),
    ],
    "sinkhorn": [
        ("log_Q -= logsumexp_over_samples(log_Q)", "logsumexp_over_samples(log_Q)",
         "The first column step is computed but not applied, so one iteration is a plain softmax: by hand (1/3, 2/3) "
         "and not (3/7, 4/7).  The later iterations balance what they get, but two are too few.  In a run the entropy"
         " of the mean target is 0.73 and not 0.98.", "test_three_iterations_by_hand"),
        ("v = 1 / sum_over_ranks(u @ Q)", "v = Q.new_ones(Q.shape[1])",
         "Columns are divided in the first iteration only.  More iterations change nothing: by hand the sums of the "
         "columns stay at 1.029 and 0.971.  In a run the entropy of the mean target is 0.85 and not 0.98.",
         "test_three_iterations_by_hand"),
        ("log_Q = logits.float() / temp", "log_Q = logits.float()",
         "The targets are those of τ = 1.  Cosines differ by 2 at most, so the targets are nearly flat.  In a run "
         "both entropies are 1.00, and L_DINO stays at ln 128 = 4.85: the uniform collapse.  By hand one row is (3/7, "
         "4/7) and not (5/13, 8/13).", "test_temperature_by_hand"),
    ],
    "centering": [
        ("p_t = ((z - self.centre) / temp).softmax(dim=-1)", "p_t = (z / temp).softmax(dim=-1)",
         "The centre is not subtracted, so nothing keeps one prototype from winning everywhere.  In a run L_DINO and"
         " both entropies are 0.00: all images get one prototype.", "test_two_batches_by_hand"),
        ("p_t = ((z - self.centre) / temp).softmax(dim=-1)", "p_t = (z / temp - self.centre).softmax(dim=-1)",
         "The centre is subtracted after the division by the temperature, so at τ_t = 0.01 it is 100 times too weak."
         "  A run collapses as without a centre: L_DINO and both entropies are 0.00.  By "
         "hand the first probability is 1/19 and not 1/10.", "test_temperature_and_momentum_by_hand"),
        ("self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), 1 - self.momentum)",
         "self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), self.momentum)",
         "The centre forgets nine tenths of its past with every batch: by hand it moves by 0.99 and not by 0.11.  In "
         "a run little looks wrong: the entropies are 0.42 and 0.76, with the right line 0.65 and 0.89.  An example "
         "with m = ½ would not show it either.", "test_temperature_and_momentum_by_hand"),
    ],
    "head": [
        ("w_hat = F.normalize(self.prototypes, dim=1)", "w_hat = self.prototypes",
         "Each prototype has a length again, which multiplies its logits like a temperature of its own.  By hand the "
         "logits are 4.2 and 4.8, not 0.6 and 0.96.  In a run the lengths start near 0.02 · √128 = 0.23, so targets "
         "are flatter: the entropy of one is 0.71 and not 0.54.",
         "test_lengths_of_prototypes_do_not_matter_and_do_not_learn"),
        ("w_hat = F.normalize(self.prototypes, dim=1)", "w_hat = F.normalize(self.prototypes, dim=0)",
         "Columns of w get length 1, not the prototypes.  The shapes fit, but logits are no longer cosines: by hand "
         "one is 1.10.  In a run nothing looks wrong: L_DINO is 4.40, and the entropies are 0.55 and 0.96.",
         "test_cosines_by_hand"),
        ("y_hat = F.normalize(self.mlp(x).float(), dim=-1, eps=1e-6)", "y_hat = self.mlp(x).float()",
         "Logits are no longer cosines: by hand they are 6 and 9.6.  The network can sharpen its own output by making"
         " features longer.  In a run the entropy of one target is 0.46 and not 0.54.", "test_cosines_by_hand"),
    ],
    "masking": [
        ("for _ in range(ROUNDS):", "for _ in range(0):",
         "No rectangle is drawn, so the mask is filled up with single patches.  Their number is right, but the "
         "student can guess them from their neighbours: 0.60 of neighbouring patches are alike (both masked or both "
         "not), and not 0.88.  No number of a run shows it.", "test_masks_are_blocks"),
        ("top = (u_top[:, None] * (height + h - 1)).floor() - h + 1",
         "top = (u_top[:, None] * (height - h + 1)).floor()",
         "Rectangles stay inside the grid, as the official ones.  So the uppermost row is masked 11 % of the time and"
         " the middle one 40 %.  With the right line, it is 29 % and 31 %.",
         "test_every_patch_is_masked_about_equally_often"),
        ("shares = low + (high - low) * (torch.arange(n) + 0.5) / max(n, 1)",
         "shares = low + (high - low) * torch.rand(n, generator=generator)",
         "Each share is still uniform, but their sum now varies.  For 64 views of 4×4 patches, 100 batches have from "
         "120 to 184 masked patches, and not always 154.  So tensors change their shapes from step to step.",
         "test_counts_by_hand"),
    ],
    "schedule": [
        ("progress = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)",
         "progress = min((step - warmup) / max(total - warmup, 1), 1.0)",
         "The end value would be reached one step after the last one, as in the official code.  By hand the last of 7"
         " values is 1.05 and not 1.  In the default run the learning rate ends at 1.002e-6 and not at 1e-6: only a "
         "test sees it.", "test_cosine_by_hand"),
        ("if step < warmup:", "if step <= warmup:",
         "At step w both lines give v_0, so a schedule with a warm-up does not change.  Without a warm-up, step 0 now"
         " divides 0 by 0.  A run stops before its first step, since the weight decay has no warm-up.",
         "test_cosine_by_hand"),
        ("return warmup_start + (start - warmup_start) * step / warmup", "return start * step / warmup",
         "Each warm-up starts at 0.  Learning rates do anyway, but the teacher's temperature should start at 0.01, "
         "and divides the scores.  A run stops at step 10, because its gradients are not finite.",
         "test_warmup_by_hand"),
    ],
    "train": [
        ('"koleo": sum(koleo_loss(view) for view in cls_s[: 2 * B].chunk(2)),', '"koleo": koleo_loss(cls_s[: 2 * B]),',
         "The nearest other [CLS] token may now be that of the other view of the same image.  KoLeo then pushes apart"
         " what the image loss pulls together.  After the default run this is so for 10 % of the views; by chance it "
         "would be 1.6 %.  The loss is one mean and no longer a sum of two: L_KoLeo is −0.01 in a run.",
         "test_only_the_student_sees_masks_and_koleo_sees_each_global_view"),
        ("student_masks = [None if r.teacher else masks, None][: len(crops)]",
         "student_masks = [None, None][: len(crops)]",
         "The student sees the patches that it should infer from the others, so it can copy them.  In a run L_iBOT is"
         " 0.53 and not 1.63.  A lower loss is not a better network.",
         "test_only_the_student_sees_masks_and_koleo_sees_each_global_view"),
        ("torch._foreach_lerp_(old, new, 1 - momentum)", "torch._foreach_lerp_(old, new, momentum)",
         "The teacher is almost the student, and repeats each of its errors.  With m = 0.75, a "
         "teacher of 1 and a student of 3 become 2.5 and not 1.5.  In a short run nothing looks wrong: L_DINO is "
         "4.29.  With no average at all, the whole default run of 2,460 steps ends with a k-NN of 88.9 to 95.5 % in "
         "three seeds, with the average 92.9 to 94.8 %; so the two differ less than the seeds do.",
         "test_teacher_is_a_moving_average"),
    ],
}  # fmt: skip


def line_number(source, start, file):
    """The number of the only line of a file's text that starts so, after its indent."""
    found = [n for n, text in enumerate(source.split("\n"), start=1) if text.strip().startswith(start)]
    assert len(found) == 1, f"the book quotes a line that occurs {len(found)} times in {file}: {start}"
    return found[0]
