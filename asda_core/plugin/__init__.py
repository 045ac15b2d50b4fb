"""Commands about plugins: `asda plugins`, `asda show`, `asda new-plugin`."""
