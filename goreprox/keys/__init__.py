"""Keys as files and texts: join strings, the state directory, and which keys are authorised."""
