"""What models learn from: rows of files -> items of token ids that say which tokens are learned -> batches."""
