"""Selection inside other people's training loops."""
