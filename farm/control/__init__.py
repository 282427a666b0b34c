"""The farm's control loop: which task next, on which replica, and what to do when it fails."""
