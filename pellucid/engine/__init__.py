"""Token ids in, token ids out; this folder knows no text."""
