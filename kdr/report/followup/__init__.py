"""Study files derived from a study: its best trial, or an ablation of a trial's choices."""
