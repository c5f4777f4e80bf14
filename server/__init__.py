"""The aggregator as it is deployed: a Flower ServerApp, wiring only."""
