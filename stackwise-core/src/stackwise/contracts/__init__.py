"""What the core and its providers agree on. Authors import its names from the face `stackwise`; the modules here are private."""
