"""Programs for a person who wants to know: parity, latency. They use nothing but the Engine interface."""
