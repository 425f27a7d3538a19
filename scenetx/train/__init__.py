"""Training: one loop from two cores to a cluster; losses; checkpoints that say what they are."""
