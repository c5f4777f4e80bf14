"""The sum of a cohort's updates, and nothing else of them."""
