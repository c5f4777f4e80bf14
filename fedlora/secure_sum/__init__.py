"""What is said while masked updates are summed; who does it is ``privacy.secure_aggregation``."""
