"""What serving engines do with an adapter: which refuse it, and which would serve something else.

``adapter`` reads what any PEFT folder says, ``traits`` finds what engines treat each in its own
way, ``rules`` says what each engine does then, and ``lint`` puts the three together. ``padding``
writes the same adapter so that most of it does not matter.
"""
