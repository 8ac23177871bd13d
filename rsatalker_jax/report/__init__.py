"""A run's report: one page to look at, with tables, curves, videos and sheets in it."""
