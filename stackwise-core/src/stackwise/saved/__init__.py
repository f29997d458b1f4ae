"""What a run leaves: where it came from, its models, exports, and text generated from them."""
