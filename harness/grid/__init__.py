"""From a grid file to cells that are graphs of stages; published figures to stand beside them."""
