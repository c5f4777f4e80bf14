"""How much of what privacy promises can be shown to be broken, by trying."""
