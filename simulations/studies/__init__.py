"""Comparisons that are repeated over seeds, and the pages in ``docs/studies`` that they write."""
