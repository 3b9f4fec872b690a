"""What an operator sees: metrics, log set-up, health and status over HTTP. Next stop: `observe.histogram`."""
