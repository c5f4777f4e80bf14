"""Plots as inline SVG: the only importers of matplotlib, beside the studies."""
