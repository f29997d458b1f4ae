"""From a plan to live artifacts: factories are called here, and what they will cost is priced."""
