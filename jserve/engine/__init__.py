"""The engine process: the loop over scheduler and runner, and the process around it."""
