"""Templates and tokenizers: from the turns of a conversation to token ids and loss weights."""
