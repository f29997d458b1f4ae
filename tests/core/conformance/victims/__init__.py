"""Small components for the tests of the kit: a sound one of every kind, and for every check one that breaks exactly its promise."""
