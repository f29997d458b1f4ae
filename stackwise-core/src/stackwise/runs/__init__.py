"""A run from config to final weights: begin, resume, branch, stop and examine it."""
