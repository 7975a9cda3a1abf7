"""From raw chat conversations to a served, scored model, on Ray."""

__version__ = "0.1.0"
