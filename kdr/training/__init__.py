"""One trial, on torch alone: fit(), evaluation, checkpoints."""
