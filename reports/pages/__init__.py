"""From numbers to words: tables in every form, the page of a grid, published figures."""
