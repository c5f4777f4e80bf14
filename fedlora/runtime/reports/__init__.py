"""What a run and an audit leave to be read: pages, plots, and what is told in them."""
