"""Break it yourself: one-line changes to the equations and the step, what they do, and the test that then fails.

A line stands here without its indent and trailing comment, and occurs once in its file.
"""

EXERCISES = {  # file: [(line, new line, what happens, test), ...]
    "dino_loss": [
        ("q_s = q - p_t[s] if s < G else q", "q_s = q",
         "A global view now also learns from its own teacher, which sees the same crop.  This pair is the easiest one "
         "and teaches nothing about the image.  No shape changes, and no number looks wrong.",
         "test_two_global_views_and_a_local_one_by_hand"),
        ("return total / (B * G * (V - 1))", "return total / (B * V)",
         "The sum is divided by the number of views, not of pairs.  The loss then weighs almost twice as much as the "
         "patch loss.",
         "test_two_global_views_and_a_local_one_by_hand"),
    ],
    "ibot_loss": [
        ("return (weight * H).sum() / len(mask)", "return H.mean()",
         "Every masked patch counts the same, so a view with half of its patches masked counts five times as much as a "
         "view with a tenth.",
         "test_three_images_by_hand"),
        ("return (weight * H).sum() / len(mask)", "return (weight * H).sum() / (M_b > 0).sum()",
         "Views without a mask no longer count as 0.  With half of the views masked, the loss doubles.",
         "test_three_images_by_hand"),
    ],
    "koleo": [
        ("nearest = (x @ x.T).fill_diagonal_(-torch.inf).argmax(dim=1)",
         "nearest = (x @ x.T).fill_diagonal_(-1).argmax(dim=1)",
         "Opposite points have a cosine of −1 too.  The first of them is now its own nearest neighbour, at distance 0.",
         "test_an_antipodal_pair_by_hand"),
        ("return -0.5 * (d_squared + eps).log().mean()", "return -0.5 * d_squared.log().mean()",
         "Two equal images in a batch make the loss infinite.",
         "test_equal_rows_by_hand"),
    ],
    "sinkhorn": [
        ("log_Q -= logsumexp_over_samples(log_Q)", "logsumexp_over_samples(log_Q)",
         "The first column step is computed but not applied, so one iteration is a plain softmax.",
         "test_three_iterations_by_hand"),
        ("Q /= sum_over_ranks(Q.sum(dim=0))", "Q /= 1",
         "Columns are divided in the first iteration only.  Then more iterations change nothing, and prototypes are "
         "used unequally.",
         "test_three_iterations_by_hand"),
    ],
    "centering": [
        ("p_t = ((z - self.centre) / temp).softmax(dim=-1)", "p_t = (z / temp - self.centre).softmax(dim=-1)",
         "The centre is subtracted after the division by the temperature, so at τ = 0.04 it is 25 times too weak.",
         "test_temperature_and_momentum_by_hand"),
        ("self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), 1 - self.momentum)",
         "self.centre.lerp_(sum_over_ranks(z.mean(dim=0)) / world_size(), self.momentum)",
         "The centre forgets nine tenths of its past with every batch.  An example with m = ½ would not show it.",
         "test_temperature_and_momentum_by_hand"),
    ],
    "head": [
        ("w_hat = F.normalize(self.prototypes, dim=1)", "w_hat = self.prototypes",
         "Each prototype has a length again, which multiplies its logits like a temperature of its own.",
         "test_lengths_of_prototypes_do_not_matter_and_do_not_learn"),
        ("y_hat = F.normalize(self.mlp(x).float(), dim=-1, eps=1e-6)", "y_hat = self.mlp(x).float()",
         "Logits are no longer cosines.  The network can sharpen its own output by making features longer.",
         "test_cosines_by_hand"),
    ],
    "masking": [
        ("for _ in range(ROUNDS):", "for _ in range(0):",
         "No rectangle is drawn, so the mask is filled up with single patches.  Their number is right, but the student "
         "can guess them from their neighbours.",
         "test_masks_are_blocks"),
        ("top = (u_top[:, None] * (height + h - 1)).floor() - h + 1",
         "top = (u_top[:, None] * (height - h + 1)).floor()",
         "Rectangles stay inside the grid, so its upper and lower edges are masked less often than its middle.",
         "test_every_patch_is_masked_about_equally_often"),
    ],
    "schedule": [
        ("progress = min((step - warmup) / max(total - 1 - warmup, 1), 1.0)",
         "progress = min((step - warmup) / max(total - warmup, 1), 1.0)",
         "The end value would be reached one step after the last one, as in the official code.",
         "test_cosine_by_hand"),
    ],
    "train": [
        ('"koleo": sum(koleo_loss(view) for view in cls_s[: 2 * B].chunk(2)),', '"koleo": koleo_loss(cls_s[: 2 * B]),',
         "The nearest other [CLS] token is mostly that of the other view of the same image.  KoLeo then pushes apart "
         "what the image loss pulls together.",
         "test_only_the_student_sees_masks_and_koleo_sees_each_global_view"),
        ("student_masks = [None if r.teacher else masks, None][: len(crops)]",
         "student_masks = [None, None][: len(crops)]",
         "The student sees the patches that it should infer from the others, so it can copy them.",
         "test_only_the_student_sees_masks_and_koleo_sees_each_global_view"),
        ("torch._foreach_lerp_(old, new, 1 - momentum)", "torch._foreach_lerp_(old, new, momentum)",
         "The teacher is almost the student of the step before, and repeats each of its errors.",
         "test_teacher_is_a_moving_average"),
    ],
}  # fmt: skip


def line_number(source, start, file):
    """The number of the only line of a file's text that starts so, after its indent."""
    found = [n for n, text in enumerate(source.split("\n"), start=1) if text.strip().startswith(start)]
    assert len(found) == 1, f"book/exercises.py quotes a line that occurs {len(found)} times in {file}: {start}"
    return found[0]
