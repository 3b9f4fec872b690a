"""
What an operator sees: log, metrics, health and status over HTTP.

Rooms hand over plain integers and `histogram.LatencyHistogram`; `metrics` turns them into Prometheus text when somebody
asks, `http` serves it, `logging` takes log lines without ever holding up the event loop.
"""
