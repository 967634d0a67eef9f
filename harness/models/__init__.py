"""Pre-trained models: where they lie, how they are read, held, forked and kept."""
