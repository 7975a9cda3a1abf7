"""Conversion of a model directory to GGUF, the format of llama.cpp and Ollama."""
