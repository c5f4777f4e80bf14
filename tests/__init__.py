"""The tests; a package so that ``tests.oracles`` and ``tests.strategies`` can be imported."""
