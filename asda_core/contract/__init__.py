"""The contract of each family of plugins, as checks; `asda_core.testing` offers them."""
