"""What a gate can show of all that it let in and out: a signed, hash-chained log."""
