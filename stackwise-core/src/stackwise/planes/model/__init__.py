"""The model plane: what the model is, and how its parameters go from one declared state to the next."""
