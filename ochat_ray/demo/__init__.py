"""The demo: all stages on one machine, and where its inputs come from."""
