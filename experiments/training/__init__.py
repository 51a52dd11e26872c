"""Training: the loop, its steps, checkpoints, placement and the folder of a run."""
