from tests.hub.fixtures import cache, hub

__all__ = ["cache", "hub"]
