"""Jobs: admission, routes, events and results."""
