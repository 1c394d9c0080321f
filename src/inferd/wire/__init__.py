"""The wire formats of all surfaces: the types of requests, and the parsing, validation and encoding. This
package does no I/O."""
