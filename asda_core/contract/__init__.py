"""Checks of the contract of each family of plugins, which `asda_core.testing` exports, and of all combinations."""
