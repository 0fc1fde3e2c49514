"""Study files that follow from a study: its best trial, an ablation of that, any logged trial."""
