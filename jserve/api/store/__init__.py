"""What outlives a request: files, batches and responses, in SQLite and beside it, each row with its owner."""
