"""How a model is run: batches, memory, resumption, generation, teacher forcing."""
