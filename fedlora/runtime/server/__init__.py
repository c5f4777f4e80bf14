"""The aggregator as it is deployed: SuperLink, front and coordinator, and who starts them."""
