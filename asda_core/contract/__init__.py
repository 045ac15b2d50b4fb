"""Checks of the contract of each family of plugins; `asda_core.testing` exports them."""
