"""The registry's protocol; who speaks it is ``fedlora.release.registry``."""
