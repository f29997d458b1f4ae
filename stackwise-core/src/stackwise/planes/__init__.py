"""The three planes: each owns its artifact and its extract → transform → load."""
