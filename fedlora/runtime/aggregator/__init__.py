"""The aggregator's side: rounds, cohorts, what it asks, checks, folds and keeps."""
