"""What the core asks of providers: specs, options, selectors, hooks, protocols, events. Nothing here runs anything."""
