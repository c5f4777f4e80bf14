"""Secure aggregation: the aggregator learns the sum of a cohort's updates, and no single one.

::

    site (Participant)                                     aggregator (Collector)
    trained, inspected; fresh keys ── Advertisement ─────► all who have trained: the roster
    roster whole, pinned, of one context ◄──────── Roster
    seed and mask key shared, sealed ──── Shares ────────► to whom each is for
    shares of the others ◄───────────────────────── Inbox
    own mask + a mask with each other ─── vector ────────► adds it to the sum, keeps nothing else
    who is in the sum ◄──────────────────────── Survivors
    signed once ──────────────────────── Signature ──────► until enough have signed the same
    enough have signed ◄─────────────────────── Unmasking
    shares: survivors' seeds, others' keys ── Revealed ──► own masks off; half masks of the lost off

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS),
section 4 and figure 4, with its consistency check against an aggregator that lies. Above a hundred
clients the sparse graph of Bell et al. 2020, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead" (CCS), section 3, against one that is only curious. All of it is pure:
who carries the messages is ``runtime``'s business.
"""
