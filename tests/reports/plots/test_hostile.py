"""Names that would break a picture are drawn as what can be seen of them."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Text

from reports.plots.panels import encode_figure


def test_every_text_of_a_figure_is_what_can_be_seen() -> None:
    figure = Figure(figsize=(1, 1))
    left, right = figure.subplots(1, 2, sharey=True)
    left.set_yticks([0, 1], ["a\ud800", "b\nc"])
    right.plot([0, 1], [0, 1], label="\x1b[31m")
    figure.suptitle("t\u202et")
    figure.legend()
    encode_figure(figure)
    found = {artist.get_text() for artist in figure.findobj(Text) if isinstance(artist, Text)}
    assert {r"a\ud800", "b\nc", r"\x1b[31m", r"t\u202et"} <= found
    assert [label.get_text() for label in left.get_yticklabels()] == [r"a\ud800", "b\nc"]
