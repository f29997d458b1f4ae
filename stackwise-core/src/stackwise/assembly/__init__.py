"""From a plan to live artifacts: calls the factories, and prices what they will cost."""
