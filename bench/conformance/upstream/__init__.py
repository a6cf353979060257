"""An upstream MCP server that has whatever the conformance suite asks of a server, in both eras and transports."""
