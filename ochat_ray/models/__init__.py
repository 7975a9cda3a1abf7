"""Base models: directories local or remote, their weight files, and loading."""
