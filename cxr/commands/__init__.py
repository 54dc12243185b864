"""One module a group of commands; ``cli`` lists them. Each parses, calls one library function, and prints."""
