"""The program: its commands and what they print. Everything that it does, it has featcache and heads do."""
