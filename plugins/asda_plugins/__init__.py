"""The plugins that come with asda. Each file stands alone and imports only the public contracts."""
