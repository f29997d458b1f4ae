"""A run from config to final weights: begun, gone on with, branched, stopped, examined."""
