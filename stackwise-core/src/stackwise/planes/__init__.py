"""The three planes own the live artifacts: data, model and optimizer."""
