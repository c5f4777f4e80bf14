"""Version 1 of the registry's protocol, generated from ``proto/fedlora/registry/v1``."""
