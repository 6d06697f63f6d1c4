"""From a model that runs here to a folder that a server starts from."""

__all__: list[str] = []
