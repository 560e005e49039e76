"""Who may come in, how much they may use, and how many may wait."""
