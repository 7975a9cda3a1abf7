"""Commands of the project: options, work and printed result of each."""
