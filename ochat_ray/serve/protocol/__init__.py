"""Request and response bodies of the API, and their translation to and from the engine's terms."""
