"""The commands of `asda`: what each prints and writes."""
