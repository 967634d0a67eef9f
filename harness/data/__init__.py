"""Texts by name, data sets of the hub or of a mirror folder, and token blocks made of them.

What authors of methods and of texts use is imported from here, which imports torch.
"""

from harness.data.hub import Access, Split
from harness.data.sources import Documents, TextSource, gives_whole_prompts, register_text, texts
from harness.data.tokens import Packed, Tokens, calibration, count_asked, pack, packed

__all__ = [
    "Access",
    "Documents",
    "Packed",
    "Split",
    "TextSource",
    "Tokens",
    "calibration",
    "count_asked",
    "gives_whole_prompts",
    "pack",
    "packed",
    "register_text",
    "texts",
]
