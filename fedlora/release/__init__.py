"""Releases: adapters that are published once, signed, and never changed."""
