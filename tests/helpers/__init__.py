"""Code shared by several tests. A test imports from here and not from another test."""
