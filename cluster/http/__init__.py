"""HTTP: films, videos in the shape of OpenAI's API, keys and limits before them."""
