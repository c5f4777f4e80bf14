"""The site's Flower app: wiring only, what it does is in ``fedlora.runtime.site.client``."""

from fedlora.runtime.site.client import app

__all__ = ["app"]
