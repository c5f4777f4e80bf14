"""The site as it is deployed: SuperNode, gate and trainer, what they share and who starts them."""
