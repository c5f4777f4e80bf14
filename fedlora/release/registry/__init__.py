"""The registry: a store that is served over gRPC, and the client that speaks to it.

A call goes through ``door`` (who may come in, how often, for how long, and what is said of errors)
to ``service`` (which knows neither callers nor limits of time). ``server`` puts them on a port.
"""
