"""Configs and state dicts of stack-wise (2025), this project's predecessor: `stackwise migrate`, and `start: {from: folder}`."""
