"""The site's Flower app: wiring only, what it does is in ``fedlora.runtime.client``."""

from fedlora.runtime.client import app

__all__ = ["app"]
