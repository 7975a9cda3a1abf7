"""Process one part of the conversations in a task: read, transform, write, summarize.

A part is a fixed range of the input's records, so its files have the same name and content whenever
and wherever it is processed. They are stored in the run's work folder, passed here as `run`. The
summary of a part, a plain JSON value, is written last: if it exists, the part is complete, and a
resumed run reuses it.
"""
