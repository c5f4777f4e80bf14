"""What travels."""

from typing import Literal

from fedlora.sections.section import Count, Section

Codec = Literal["fp32", "bf16", "int8", "nf4"]


class Wire(Section):
    """What travels."""

    codec: Codec = "int8"
    """Of the increments on their way up; the global adapter travels as float32."""
    compress: bool = False
    """Shuffle the bytes and compress them with zstd, both ways."""
    max_bytes: Count = 2**31
    """Largest message that is accepted."""
