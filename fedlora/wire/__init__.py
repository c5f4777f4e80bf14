"""How adapters travel: one packed buffer behind a checked protobuf header."""
