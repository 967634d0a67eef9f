"""The figures of a report: their names, in the order of the page, and the words under each.

The first sentence is the title. Nothing is drawn here (`plots`), so that pages need no matplotlib.
"""

from __future__ import annotations

FIGURES = {
    "score_vs_bits": "Score against effective bits per weight. "
    "Scales and zero points are counted; no model below and left of the Pareto front is better in "
    "both; error bars are 95 % t-intervals over seeds.",
    "perplexity": "Perplexity. "
    "Error bars are 95 % t-intervals over seeds; a broken line is a 16-bit model.",
    "ablation": "What one axis changes. "
    "Differences paired by seed with 95 % t-intervals; coloured where Holm's corrected p is below "
    "0.05.",
    "slopes": "Tasks from 16 bits down. "
    "Each line is a task, each panel a method; means over seeds.",
    "sweep": "Scores along an axis. "
    "Bands are 95 % t-intervals over seeds; level lines are cells without a value on the axis.",
    "score_vs_tokens": "Score against tokens trained on. "
    "Error bars are 95 % t-intervals over seeds; level lines are methods that do not train.",
    "score_vs_hours": "Score against device-hours of training. "
    "A device is a GPU, on CPUs a process; error bars are 95 % t-intervals over seeds; level lines "
    "are methods that do not train.",
    "training_loss": "Training loss. "
    "Over several seeds the line is the mean and the band reaches from the smallest to the largest; "
    "lines are smoothed. Objectives differ, so only curves of one objective compare.",
    "weights": "Weights of one layer and the levels they are rounded to. "
    "Lines are the median over groups of each level counted from zero, fainter where fewer groups "
    "have it; bands reach from quartile to quartile. One seed, the fewest bits.",
    "errors": "Quantisation error of each layer. "
    "|rounded − full precision| / |full precision| of the weights, Frobenius norms; after training "
    "it includes what training moved, after scaling it is against the scaled weights. One seed, the "
    "fewest bits.",
    "confidence": "Where the loss comes from. "
    "By the teacher's probability of the label, on a sample of the training data; dotted before "
    "training. Objectives differ, so only losses of one objective compare. One seed, the fewest bits.",
}


def title(name: str) -> str:
    return FIGURES[name].split(". ")[0].rstrip(".")
