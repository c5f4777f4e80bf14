"""Version 1 of the messages of a secure sum, generated from ``proto/fedlora/secure_sum/v1``."""
