"""What a person reads: progress, summaries, the plan in words."""
