"""Runs studies: many trials, on Ray and Optuna."""
