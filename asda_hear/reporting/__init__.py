"""What a plan leaves for people: statistics, tables, charts and one page."""
