"""Conversations from decoded records, one module per family of formats.

Each family turns one JSON value into `Conversation`s without a source; `ochat_ray.data.records`
picks the family and completes them. docs/data-format.md has an example of every format.
"""
