"""Other systems that run many short tasks, beside pilots: the same command, on the same machine."""
