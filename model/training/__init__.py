"""SAM's training step: losses, prompt sampling, schedule, and optimizer."""
