"""Read checkpoints of the released codebases, without fairseq and without running any code in the files."""
