"""Looking inside: attention maps on a piece of audio, and how much attention falls on added noise or silence."""
