"""One file per family; attribute names equal the checkpoint's names, so there is no weight map."""
