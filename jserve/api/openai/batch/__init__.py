"""OpenAI's Batch API: the lines of a file as requests of the lowest priority, whose answers become a file."""
