"""Version 1 of the wire format, generated from ``proto/fedlora/wire/v1``."""
