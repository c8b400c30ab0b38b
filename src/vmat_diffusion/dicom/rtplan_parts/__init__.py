"""Parts of an RTPLAN: its fields beside geometry, and the comparison of a file with its plan."""
