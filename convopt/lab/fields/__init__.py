"""Fields reconstructed from noisy measurements: tasks, methods, and their regret against the best fixed width."""
