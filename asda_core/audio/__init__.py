"""Decoding and resampling of audio: whole files, hours-long files, MP3 and FLAC, and the padding of short clips."""
