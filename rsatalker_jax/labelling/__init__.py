"""The page on which people label how two people are related."""
