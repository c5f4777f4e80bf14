"""Seeded trials of faults and attacks, on what must hold in spite of them."""
