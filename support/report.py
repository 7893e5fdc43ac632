"""curves.png: what a person sees of a run's numbers."""

import math

from matplotlib.figure import Figure

from support.checkpoint import write_safely


def draw_curves(rows, recipe, path):
    """curves.png: losses beside ln K, the collapse meter, and k-NN over the steps."""
    figure = Figure(figsize=(15, 4), layout="constrained")
    panels = {
        "losses": ("dino", "ibot"),
        "collapse meter": ("entropy_image", "entropy_mean", "cosine"),
        "k-NN accuracy of the teacher": ("knn_20", "knn_200"),
    }
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), "o-" if "knn" in name else "-", label=name)
        if title == "losses":
            axes.axhline(math.log(recipe.n_prototypes), color="grey", linestyle=":", label="ln K (uniform)")
        axes.set(title=title, xlabel="step")
        if axes.lines:
            axes.legend()
    write_safely(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
