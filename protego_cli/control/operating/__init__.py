"""What the operator asks, and what he is told."""
