"""Ablation tables: a plan is a grid of settings; every cell is pre-trained and evaluated; one row per cell and task."""
