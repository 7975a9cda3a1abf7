"""Duplicate conversations: exact ones by digest, near ones by MinHash."""
