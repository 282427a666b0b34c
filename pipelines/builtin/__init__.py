"""The built-in model: its world, its shapes, its training; its weights lie in weights/ in diffusers format."""
