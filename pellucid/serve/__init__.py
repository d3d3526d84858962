"""The engine over HTTP: OpenAI's shapes, so that existing tools change nothing but an address."""
