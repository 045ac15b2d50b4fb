"""The plugins that come with asda. Each file is self-contained and imports only the public contracts."""
