"""The core's own provider."""
