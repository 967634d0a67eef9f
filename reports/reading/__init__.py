"""What a run exported, read and checked."""
