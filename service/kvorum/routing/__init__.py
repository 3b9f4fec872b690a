"""RoutingManager: which requests read and which write, at which consistency, on which node, by when."""
