"""The site as it is deployed: a Flower ClientApp, wiring only."""
