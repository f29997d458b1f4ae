"""The host of providers: finds them, admits them, loads each alone, and knows their components by id."""
