"""Audio files: decoding and resampling, hours-long files, MP3 and FLAC, the padding of short clips, writing."""
