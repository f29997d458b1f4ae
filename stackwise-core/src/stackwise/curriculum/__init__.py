"""What is declared: parts, training states, transitions, and the compiled timeline of phases."""
