"""The figures, as the bytes of their PNG and PDF files.

Each is drawn from exported rows alone, with no clock, no global state and no settings of the user's,
so that equal input gives equal bytes. `data` has the numbers behind them, `panels` what they share;
`scores`, `dots`, `curves` and `inside` draw. Not here: colours and sizes (`reports.plots.style`), the words
under a figure (`reports.pages.figures`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import matplotlib

from reports.numbers.effects import effects
from reports.numbers.summary import Summary
from reports.plots import curves, data, dots, inside, scores, style
from reports.plots.data import per_model
from reports.plots.panels import device_hours, files, unit
from reports.reading import rows


def draw(summary: Summary, folder: Path) -> dict[str, dict[str, bytes]]:
    """Name -> {"png": …, "pdf": …} of every figure of `reports.pages.figures` that has something to show."""
    frame, trained = rows.load(folder), rows.load_curves(folder)
    trained = trained.assign(name=trained["cell"].map(summary.names))
    models = per_model(frame, summary)
    methods = [row.name for row in summary.rows if not row.reference]
    looks = style.looks([*methods, *trained["name"]])
    tokens = data.tokens_trained(models, trained, frame)
    hours = models["model_key"].map({} if summary.device_hours is None else summary.device_hours)
    kept = rows.load_diagnostics(folder)
    steps = inside.steps(kept, summary.names)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, style.RC))
        figures = {
            "score_vs_bits": scores.against_bits(summary, models, looks),
            "perplexity": dots.perplexity(summary, models, looks),
            "ablation": dots.ablation(summary, effects(folder)),
            "slopes": scores.slopes(summary),
            "sweep": scores.sweep(summary, models, looks),
            "score_vs_tokens": scores.against_cost(summary, models, tokens, looks, unit),
            "score_vs_hours": scores.against_cost(summary, models, hours, looks, device_hours),
            "training_loss": curves.loss(trained, looks),
            "weights": inside.weights(steps),
            "errors": inside.errors(steps),
            "confidence": inside.confidence(kept, summary.names, looks),
        }
        return {name: files(figure) for name, figure in figures.items() if figure is not None}
