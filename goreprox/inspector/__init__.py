"""The last requests of an edge and their responses: kept in memory, masked where they are shown, sent once more."""
