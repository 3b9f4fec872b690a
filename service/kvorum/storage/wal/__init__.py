"""The consensus log on disk: begin with `layout` (the bytes), then `recovery` (reading), then `segmented_log`."""
