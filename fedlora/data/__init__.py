"""From files and documentation to batches of tokens: formats, partition, templates, masks."""
