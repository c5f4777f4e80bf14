"""Processes of a host: who starts them, keeps them running, and hears what they say."""
