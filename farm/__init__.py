"""What to render, in what order, and what to do when it fails: plain Python, without ray and without torch."""
