"""What only a local simulation needs."""

from typing import Literal

from fedlora.sections.section import Section


class Simulation(Section):
    """What only a local simulation needs."""

    engine: Literal["in-process", "ray"] = "in-process"
    compare: bool = False
    """Also train each site alone and all data pooled, for as many steps."""
    reproducible_noise: bool = False
    """Draw privacy's noise and samples from the seed: for tests and studies; it protects nobody."""
