"""Re-implementations of what RSATalker is compared with."""
