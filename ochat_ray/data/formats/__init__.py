"""Parsers of decoded records, one module per family of formats.

Each family converts one JSON value to `Conversation`s without a source; `ochat_ray.data.records`
selects the family and completes the conversations. docs/data-format.md has an example of every
format.
"""
