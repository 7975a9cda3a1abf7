"""Visible text of HTML as a browser shows it: a measure that shares no code with the converter."""
