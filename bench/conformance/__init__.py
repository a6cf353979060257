"""The official conformance suite of MCP, run against the site with an upstream of our own behind it."""
