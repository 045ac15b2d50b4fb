"""Reports of a plan: statistics, tables, charts and one HTML page."""
