"""Differential privacy: how it is spent, accounted for, and made."""
