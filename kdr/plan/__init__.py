"""Which trials a study runs: arms, search spaces, trial keys. Pure: no torch, no Ray, no files."""
