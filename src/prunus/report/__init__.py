"""One self-contained page about what was pruned, what could be, or what was measured; all of it from plain JSON."""
