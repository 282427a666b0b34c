"""Ray, and nothing but Ray: replicas, pools and the controller that applies farm/'s decisions to them."""
