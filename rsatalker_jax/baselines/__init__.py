"""What RSATalker is compared with in the paper's Tables 1 to 3, re-implemented: one module each, that can be read alone."""
