"""Many trials, on Ray and Optuna."""
