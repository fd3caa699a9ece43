"""How Envoy decides, from its configuration: chains, routes, endpoints, tokens and policies."""
