"""From a storyboard to a film: what is written, checked, cut into chunks and resolved."""
